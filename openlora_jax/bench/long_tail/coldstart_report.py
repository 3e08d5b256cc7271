"""Tables and JSON of `bench coldstart`."""

from collections.abc import Sequence
from typing import Any

from openlora_jax.bench.long_tail.client import Answer
from openlora_jax.bench.long_tail.coldstart import Results, Rounds, Run
from openlora_jax.bench.long_tail.figures import Loads, breakdown, quantile
from openlora_jax.bench.long_tail.grid import Grid, bounds, loads, ms, spread, stages
from openlora_jax.bench.long_tail.workloads import Coldstart


def grids(results: Results, workload: Coldstart) -> list[Grid]:
    """Bounds first, then what they are made of, then where the time goes."""
    return [
        bounds(results.bounds),
        *(_ttft(setting, rounds) for setting, rounds in results.settings.items()),
        _gaps(results.beside, workload),
        stages(
            "Where the time to the second token goes",
            (
                (f"{setting}, {state}", _answers(runs))
                for setting, rounds in results.settings.items()
                for state, runs in rounds.items()
            ),
        ),
        _loads(results),
    ]


def as_json(results: Results) -> dict[str, Any]:
    """Every time to first token and between tokens, in seconds, and the breakdown."""
    return {
        "files_that_stayed_in_the_page_cache": results.stayed,
        "bounds": [bound.as_json() for bound in results.bounds],
        "settings": {
            setting: {state: [_run(run) for run in runs] for state, runs in rounds.items()}
            for setting, rounds in results.settings.items()
        },
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "ttft": [answer.ttft for answer in run.answers],
        "gaps": [answer.gaps for answer in run.answers],
        "neighbours_gaps": run.gaps,
        "mean_stages": breakdown(run.answers),
        "loads": run.loads.as_json(),
    }


def _answers(runs: Sequence[Run]) -> list[Answer]:
    return [answer for run in runs for answer in run.answers]


def _ttft(setting: str, rounds: Rounds) -> Grid:
    warm = [quantile([each.ttft for each in run.answers], 0.5) for run in rounds["warm"]]
    rows = []
    for state, runs in rounds.items():
        medians = [quantile([each.ttft for each in run.answers], 0.5) for run in runs]
        every = [each.ttft for each in _answers(runs)]
        ratio = quantile([mine / theirs for mine, theirs in zip(medians, warm, strict=True)], 0.5)
        cells = (f"{ms(quantile(medians, 0.5))} {spread(medians)}", f"{ratio:.2f}", ms(quantile(every, 0.99)))
        rows.append((state, str(len(every)), *cells))
    return Grid(
        title=f"{setting}: time to first token, ms: medians of the rounds (smallest .. largest)",
        columns=("adapter", "requests", "median", "over warm", "p99 of all"),
        rows=tuple(rows),
    )


def _gaps(rounds: Rounds, workload: Coldstart) -> Grid:
    rows = []
    for state, runs in rounds.items():
        tails = [quantile(run.gaps, 0.99) for run in runs]
        middle = quantile([quantile(run.gaps, 0.5) for run in runs], 0.5)
        number = str(sum(len(run.gaps) for run in runs))
        most = quantile([quantile(run.gaps, 0.9) for run in runs], 0.5)
        rows.append((state, number, ms(middle), ms(most), f"{ms(quantile(tails, 0.5))} {spread(tails)}"))
    return Grid(
        title=f"ms between tokens of the {workload.streams} streams beside; the longest hold a prefill in every state",
        columns=("adapters that others ask for", "gaps", "median", "p90", "p99"),
        rows=tuple(rows),
    )


def _loads(results: Results) -> Grid:
    found = {
        f"{setting}, {state}": Loads.together([run.loads for run in runs])
        for setting, rounds in results.settings.items()
        for state, runs in rounds.items()
    }
    return loads(found, results.stayed)
