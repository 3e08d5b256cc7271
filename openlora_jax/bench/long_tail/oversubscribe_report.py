"""Tables and JSON of `bench oversubscribe`."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from openlora_jax.bench.long_tail.client import Answer
from openlora_jax.bench.long_tail.figures import Loads, breakdown, quantile, slowest
from openlora_jax.bench.long_tail.grid import Grid, bounds, loads, ms, spread, stages
from openlora_jax.bench.long_tail.oversubscribe import ARMS, Results, Run
from openlora_jax.bench.long_tail.traffic import DECILES
from openlora_jax.bench.samples import Samples

TAIL = 0.01


def grids(results: Results) -> list[Grid]:
    """Bounds first, then what they are made of, then where the time goes."""
    return [
        bounds(results.bounds),
        _capacity(results),
        _arms(results),
        _deciles(results),
        stages("Where the time to the second token goes", _groups(results)),
        loads({arm: Loads.together([run.loads for run in runs]) for arm, runs in results.arms.items()}, results.stayed),
    ]


def as_json(results: Results) -> dict[str, Any]:
    """Every time to first token and between tokens, in seconds, and the breakdown."""
    return {
        "files_that_stayed_in_the_page_cache": results.stayed,
        "bounds": [bound.as_json() for bound in results.bounds],
        "capacity": [_samples(each) for each in (results.all_registered, results.resident_registered)],
        "rate": results.rate,
        "arms": {arm: [_run(run) for run in runs] for arm, runs in results.arms.items()},
    }


def deciles_of(runs: Sequence[Run]) -> list[list[Answer]]:
    """The answers of all rounds, by the decile in their own round."""
    by_run = [run.by_decile() for run in runs]
    return [[answer for found in by_run for answer in found[tenth]] for tenth in range(DECILES)]


def all_gaps(answers: Sequence[Answer]) -> list[float]:
    return [gap for answer in answers for gap in answer.gaps]


def ttfts(answers: Sequence[Answer]) -> list[float]:
    return [answer.ttft for answer in answers]


def _samples(samples: Samples) -> dict[str, Any]:
    return {"name": samples.name, "unit": samples.unit, "median": samples.median, "values": samples.values}


def _run(run: Run) -> dict[str, Any]:
    return {
        "adapters": run.adapters,
        "ttft": ttfts(run.answers),
        "gaps": [answer.gaps for answer in run.answers],
        "mean_stages": breakdown(run.answers),
        "mean_stages_by_decile": [breakdown(each) for each in run.by_decile()],
        "loads": run.loads.as_json(),
    }


def _capacity(results: Results) -> Grid:
    rows = tuple(
        (each.name, f"{each.median:.2f} ({min(each.values):.2f} .. {max(each.values):.2f})")
        for each in (results.all_registered, results.resident_registered)
    )
    title = f"Closed loop on resident adapters; offered below: {results.rate:.2f} requests/s"
    return Grid(title=title, columns=("", "requests/s"), rows=rows)


def _arms(results: Results) -> Grid:
    rows = []
    for arm, runs in results.arms.items():
        cells = []
        for of, share in ((ttfts, 0.5), (ttfts, 0.99), (all_gaps, 0.5), (all_gaps, 0.99)):
            values = [quantile(of(run.answers), share) for run in runs]
            cells.append(f"{ms(quantile(values, 0.5))} {spread(values)}")
        cells.append(ms(quantile([ttft for run in runs for ttft in ttfts(run.answers)], 0.99)))
        rows.append((arm, str(sum(len(run.answers) for run in runs)), *cells))
    columns = (
        "arm",
        "requests",
        "to first token: median",
        "p99",
        "between tokens: median",
        "p99",
        "first token: p99 of all",
    )
    title = "ms, from the due time: medians of the rounds (smallest .. largest)"
    return Grid(title=title, columns=columns, rows=tuple(rows))


def _deciles(results: Results) -> Grid:
    arms = [deciles_of(results.arms[arm]) for arm in ARMS]
    names = _adapters(results.arms["paged"])
    rows = []
    for tenth in range(DECILES):
        cells = []
        for of, share in ((ttfts, 0.5), (ttfts, 0.99), (all_gaps, 0.5), (all_gaps, 0.99)):
            cells += [ms(quantile(of(arm[tenth]), share)) for arm in arms]
        rows.append((f"{tenth + 1}", names[tenth], *cells))
    figures = ("first token p50", "control", "p99", "control", "gap p50", "control", "p99", "control")
    title = "ms by popularity: tenths of the requests, the most popular adapters first"
    return Grid(title=title, columns=("tenth", "adapters", *figures), rows=tuple(rows))


def _adapters(runs: Sequence[Run]) -> list[str]:
    """How popular the adapters of each decile are: the first and the last place."""
    ordered = sorted(adapter for run in runs for adapter in run.adapters)
    cuts = [round(tenth * len(ordered) / DECILES) for tenth in range(DECILES + 1)]
    return [f"{ordered[first] + 1} .. {ordered[last - 1] + 1}" for first, last in pairwise(cuts)]


def _groups(results: Results) -> Iterator[tuple[str, list[Answer]]]:
    """All answers of an arm, those of the hottest and of the coldest decile, and the slowest."""
    for arm, runs in results.arms.items():
        every, tenths = [answer for run in runs for answer in run.answers], deciles_of(runs)
        yield arm, every
        yield f"{arm}, hottest tenth", tenths[0]
        yield f"{arm}, coldest tenth", tenths[-1]
        yield f"{arm}, slowest {TAIL:.0%}", slowest(every, TAIL)
