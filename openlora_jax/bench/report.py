"""The table and the JSON of `bench throughput`."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.table import Table

from openlora_jax import __version__
from openlora_jax.bench.samples import Samples
from openlora_jax.bench.throughput import Results, Workload
from openlora_jax.llm import LLM


def setup(llm: LLM, workload: Workload, peer: str | None) -> dict[str, Any]:
    """Everything that a reader needs to run the same again."""
    return {
        "workload": asdict(workload),
        "base_digest": llm.base_digest,
        "engine": llm.config.model_dump(),
        "backend": llm.backend,
        "peer": peer,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"openlora-jax": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("jax", "jaxlib", "numpy")},
    }


def as_json(results: Results) -> dict[str, Any]:
    """Every sample and the medians."""
    return {
        "throughput": [_fields(samples) for samples in results.throughput.values()],
        "decode_step": [_fields(samples) for samples in results.step.values()],
        "floor": _fields(results.floor),
        "peer": [_fields(samples) for samples in results.peer.values()],
    }


def table(results: Results, workload: Workload, peer: str | None) -> Table:
    """One row an arm: throughput against base-only and the peer, decode step against the floor."""
    title = (
        f"{workload.requests} requests, {workload.prompt} tokens in, {workload.new} out, greedy: "
        f"medians of {workload.rounds} rounds (smallest .. largest)"
    )
    grid = Table(title=title, caption=f"floor of a decode step: {_summary(results.floor)} ms")
    for column in ("arm", "tok/s", "over base only", "decode step, ms", "over floor"):
        grid.add_column(column, justify="left" if column == "arm" else "right")
    if peer:
        grid.add_column(f"{peer}, tok/s", justify="right")
        grid.add_column("over peer", justify="right")
    base = next(iter(results.throughput.values()))
    for name, samples in results.throughput.items():
        step = results.step[name]
        cells = [name, _summary(samples), _ratio(samples, base), _summary(step), _ratio(step, results.floor)]
        if peer:
            cells += [_summary(results.peer[name]), _ratio(samples, results.peer[name])]
        grid.add_row(*cells)
    return grid


def _fields(samples: Samples) -> dict[str, Any]:
    return {"name": samples.name, "unit": samples.unit, "median": samples.median, "values": samples.values}


def _summary(samples: Samples) -> str:
    return f"{samples.median:.1f} ({samples.spread})"


def _ratio(samples: Samples, other: Samples) -> str:
    return f"{samples.ratio(other):.2f}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
