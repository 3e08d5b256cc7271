"""The tables of `bench quantised`, for a terminal, as a page in Markdown, and as JSON."""

from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from openlora_jax.bench.long_tail.grid import Grid
from openlora_jax.bench.machine import line, machine, versions
from openlora_jax.bench.quantised.arms import ARMS, FLOAT32
from openlora_jax.bench.quantised.measure import Results
from openlora_jax.bench.samples import Samples

LIBRARIES = ("torch", "bitsandbytes", "torchao")
"""What tunes the base, and whose formats ours are compared with."""


def grids(results: Results) -> list[Grid]:
    """Accuracy, memory, time, and single matrices."""
    return [_accuracy(results), _memory(results), _steps(results), _errors(results)]


def heading(results: Results) -> str:
    """Where it was measured, and on what."""
    libraries = [f"{name} {number}" for name, number in _libraries().items()]
    return (
        f"{', '.join([line(machine(), versions()), *libraries])}\n"
        f"{results.parameters:,} parameters, tuned off the grid that they came on; {results.scored:,} tokens of"
        f" Python's own docstrings that were not tuned on, text {results.text[:16]}"
    )


def markdown(results: Results) -> str:
    parts = ["# `openlora bench quantised`", heading(results).replace("\n", "\n\n")]
    return "\n\n".join([*parts, *(grid.markdown().rstrip("\n") for grid in grids(results))]) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Every sample."""
    steps = {
        name: {f"{rows} rows, {position} tokens": samples.values for (rows, position), samples in by_case.items()}
        for name, by_case in results.steps.items()
    }
    return {**asdict(results), "steps": steps}


def setup() -> dict[str, Any]:
    return {"machine": machine(), "versions": versions() | _libraries()}


def _libraries() -> dict[str, str]:
    """The versions of those that are installed."""
    return {name: version(name) for name in LIBRARIES if find_spec(name)}


def _accuracy(results: Results) -> Grid:
    rows = []
    for arm in ARMS:
        found, size = results.perplexity[arm.name], results.sizes[arm.folder] / results.parameters
        more = found / results.perplexity[FLOAT32] - 1
        promised = ("", "") if arm.bound is None else (f"{arm.bound:.1%}", "pass" if more <= arm.bound else "short")
        rows.append((arm.name, f"{size:.3f}", f"{found:.3f}", f"{more:+.2%}", *promised))
    columns = ("base", "bytes a parameter", "perplexity", "over float32", "bound", "")
    return Grid(title="Perplexity", columns=columns, rows=tuple(rows))


def _memory(results: Results) -> Grid:
    """What is quantised: a conversion may hold what it makes and one tensor, and so may a load."""
    names = {arm.folder: arm.name for arm in reversed(ARMS)}
    rows = []
    for folder, size in results.sizes.items():
        bound, held = size + results.largest, (results.converting[folder], results.loading[folder])
        promised = ("", "") if folder == FLOAT32 else tuple("pass" if each <= bound else "short" for each in held)
        rows.append((names[folder], _mb(size), _mb(bound), _mb(held[0]), promised[0], _mb(held[1]), promised[1]))
    columns = ("base", "weights", "and the largest tensor: the bound", "held to convert", "", "held to load", "")
    return Grid(title="MB, at their height, beyond the libraries", columns=columns, rows=tuple(rows))


def _steps(results: Results) -> Grid:
    cases = list(results.steps[FLOAT32])
    columns = ("base", *(f"{rows} row{'s' * (rows > 1)}, {position} tokens" for rows, position in cases))
    rows = tuple((arm.name, *(_milliseconds(results.steps[arm.name][case]) for case in cases)) for arm in ARMS)
    return Grid(title="A decode step, ms: the shortest of the rounds (their median)", columns=columns, rows=rows)


def _errors(results: Results) -> Grid:
    columns = ("format", *next(iter(results.errors.values())))
    rows = tuple((name, *(f"{error:.4f}" for error in by.values())) for name, by in results.errors.items())
    title = "Single matrices of independent numbers: the error's root mean square over theirs"
    return Grid(title=title, columns=columns, rows=rows)


def _milliseconds(samples: Samples) -> str:
    return f"{min(samples.values):.1f} ({samples.median:.1f})"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"
