"""The table and the JSON of `bench throughput`."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from openlora_jax.bench.machine import machine, versions
from openlora_jax.bench.samples import Samples
from openlora_jax.bench.throughput import BASE_ONLY, Results, Workload
from openlora_jax.llm import LLM


def setup(llm: LLM, workload: Workload, peer: str | None) -> dict[str, Any]:
    """Everything that a reader needs to run the same again."""
    return {
        "workload": asdict(workload),
        "base_digest": llm.base_digest,
        "engine": llm.config.model_dump(),
        "backend": llm.backend,
        "peer": peer,
        "machine": machine(),
        "versions": versions(),
    }


def as_json(results: Results) -> dict[str, Any]:
    """Every sample and the medians."""
    return {
        "throughput": [_fields(samples) for samples in results.throughput.values()],
        "decode_step": [_fields(samples) for samples in results.step.values()],
        "floor": _fields(results.floor),
        "greedy": _fields(results.greedy),
        "sampled": _fields(results.sampled),
        "peer": [_fields(samples) for samples in results.peer.values()],
    }


def table(results: Results, workload: Workload, peer: str | None) -> Table:
    """One row an arm: throughput against base-only (if it was run) and the peer, decode step against the floor."""
    title = (
        f"{workload.requests} requests, {workload.prompt} tokens in, {workload.new} out, greedy: "
        f"medians of {workload.rounds} rounds (smallest .. largest)"
    )
    caption = (
        f"floor of a decode step: {_summary(results.floor)} ms\n"
        f"of the base model alone, greedy: {_summary(results.greedy)} ms; with temperature, top-k, top-p, min-p, "
        f"penalties and logprobs in every row: {_summary(results.sampled)} ms, "
        f"{_ratio(results.sampled, results.greedy)} times as long"
    )
    grid = Table(title=title, caption=caption, caption_justify="left")
    base = results.throughput.get(BASE_ONLY)
    grid.add_column("arm")
    for column in _columns(base is not None, peer):
        grid.add_column(column, justify="right")
    for name, samples in results.throughput.items():
        step = results.step[name]
        over_base = [_ratio(samples, base)] if base else []
        over_peer = [_summary(results.peer[name]), _ratio(samples, results.peer[name])] if peer else []
        grid.add_row(name, _summary(samples), *over_base, _summary(step), _ratio(step, results.floor), *over_peer)
    return grid


def _columns(base: bool, peer: str | None) -> list[str]:
    over_base = [f"over {BASE_ONLY}"] if base else []
    over_peer = [f"{peer}, tok/s", "over peer"] if peer else []
    return ["tok/s", *over_base, "decode step, ms", "over floor", *over_peer]


def _fields(samples: Samples) -> dict[str, Any]:
    return {"name": samples.name, "unit": samples.unit, "median": samples.median, "values": samples.values}


def _summary(samples: Samples) -> str:
    return f"{samples.median:.1f} ({samples.spread})"


def _ratio(samples: Samples, other: Samples) -> str:
    return f"{samples.ratio(other):.2f}"
