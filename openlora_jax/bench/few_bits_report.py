"""The page of `bench few-bits` in Markdown: where it was measured, what follows, and a table for each question."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from openlora_jax.bench.few_bits import FORMS, LOADS, Measured
from openlora_jax.bench.long_tail.grid import Grid
from openlora_jax.bench.machine import line

FEW = FORMS[1:]

HEAD = """\
Adapters of the demo, and random ones, whose columns differ in size by a standard deviation of a half in the logarithm,
so that groups are rounded worse than those of trained ones.

* Bytes are over those of the same adapter in bfloat16.
* An error is what rounding changed of the delta of a module in a layer, relative, in its Frobenius norm.
* Scores are those of the demo's held-out tasks. What moved is a held-out token's log-probability: its mean distance to
  that with 16 bits.
* A load is from files to the pool, in plain pages or, *int4 pages*, in pages of 4 bits; files are in the page cache or
  were taken out of it."""


def markdown(adapters: Sequence[Measured], setup: dict[str, Any]) -> str:
    """The page.

    Args:
        adapters: what was measured.
        setup: `machine` and `versions` as in `bench.machine`, `backend`, and `dtype` of the plain pages.
    """
    where = line(setup["machine"], setup["versions"])
    heading = f"{where}; backend {setup['backend']}, base and plain pages in {setup['dtype']}"
    tables = [grid(adapters).markdown().rstrip("\n") for grid in (_rounding, _answers, _loads)]
    return "\n\n".join(["# `openlora bench few-bits`", heading, HEAD, _conclusions(adapters), *tables]) + "\n"


def _conclusions(adapters: Sequence[Measured]) -> str:
    """What follows, in numbers."""
    shares = ", ".join(f"{form} {median(_shares(adapters, form)):.2f}" for form in FEW)
    scored = [each.scores for each in adapters if each.scores]
    moved = ", ".join(
        f"{form} {sum(scores[index] != scores[0] for scores in scored)}" for index, form in enumerate(FEW, 1)
    )
    stayed = sum(each.stayed for each in adapters)
    return (
        f"Share of the bytes of 16 bits, the median: {shares}. Scores that change, of {len(scored)}: {moved}.\n\n"
        f"Adapters that load slower than in 16 bits, of {len(adapters)} (and the median of the ratios of times):"
        f" from cached files {_slower([each.loads for each in adapters])};"
        f" from uncached files {_slower([each.cold for each in adapters])}."
        f" Files that could not be taken out of the page cache: {stayed}."
    )


def _shares(adapters: Sequence[Measured], form: str) -> list[float]:
    return [each.sizes[FORMS.index(form)] / each.sizes[0] for each in adapters]


def _slower(times: Sequence[Sequence[float]]) -> str:
    """Times of each adapter by `LOADS`, of which the first is that of 16 bits."""
    ratios = {arm: [each[index] / each[0] for each in times] for index, arm in enumerate(LOADS) if index}
    return ", ".join(f"{arm} {sum(ratio > 1 for ratio in of)} ({median(of):.2f})" for arm, of in ratios.items())


def _rounding(adapters: Sequence[Measured]) -> Grid:
    kinds = ("bytes", "error, median", "error, worst")
    columns = ("adapter", "rank", "modules", *(f"{form}: {kind}" for form in FEW for kind in kinds))
    rows = []
    for each in adapters:
        cells = [each.name, str(each.rank), str(each.modules)]
        for size, errors in zip(each.sizes[1:], each.errors, strict=True):
            cells += [f"{size / each.sizes[0]:.3f}", f"{median(errors):.4f}", f"{max(errors):.4f}"]
        rows.append(tuple(cells))
    return Grid(title="Bytes, and errors", columns=columns, rows=tuple(rows))


def _answers(adapters: Sequence[Measured]) -> Grid:
    columns = (
        "adapter",
        *(f"score in {form}" for form in FORMS),
        *(f"moved by {form}" for form in FEW),
        "moved by leaving the adapter out",
    )
    rows = tuple(
        (
            each.name,
            *([f"{score:.0%}" for score in each.scores] or [""] * len(FORMS)),
            *(f"{moved:.4f}" for moved in (*each.moved, each.without)),
        )
        for each in adapters
    )
    return Grid(title="Answers", columns=columns, rows=rows)


def _loads(adapters: Sequence[Measured]) -> Grid:
    columns = ("adapter", *(f"{files}: {arm}" for files in ("cached", "uncached") for arm in LOADS))
    rows = tuple((each.name, *(f"{1000 * seconds:.1f}" for seconds in (*each.loads, *each.cold))) for each in adapters)
    return Grid(title="Loads from files that are cached and that are not: median ms", columns=columns, rows=rows)
