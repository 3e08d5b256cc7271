"""The table and the JSON of `bench kernels`."""

from dataclasses import asdict
from typing import Any

import jax
from rich.table import Table

from openlora_jax.bench.kernels.devices import Peak
from openlora_jax.bench.kernels.measure import Outcome, Result
from openlora_jax.bench.kernels.workload import Workload
from openlora_jax.bench.machine import line, machine, versions
from pallas_kernels.registry import Ops

CACHED = "*"


def setup(workload: Workload, ops: Ops, device: jax.Device, peak: Peak) -> dict[str, Any]:
    """Everything that a reader needs to run the same again."""
    return {
        "workload": asdict(workload),
        "model": workload.model.to_json(),
        "backend": ops.backend,
        "implementations": {op: each.name for op, each in ops.chosen.items()},
        "device": {"kind": device.device_kind, "platform": device.platform, "peak": asdict(peak)},
        "machine": machine(),
        "versions": versions(),
    }


def as_json(results: list[Result]) -> list[dict[str, Any]]:
    """Every sample, medians, floors and errors."""
    return [
        {
            "op": result.op,
            "mix": result.mix or None,
            "bytes": result.nbytes,
            "operations": result.operations,
            "floor_us": result.floor,
            "bound": result.bound,
            "cached": result.cached,
            "implementations": [_fields(outcome) for outcome in result.outcomes],
        }
        for result in results
    ]


def heading(setup: dict[str, Any]) -> str:
    """What was measured, and where, in a few lines."""
    workload, device = setup["workload"], setup["device"]
    peak, ranks = device["peak"], ", ".join(map(str, workload["ranks"]))
    return (
        f"{line(setup['machine'], setup['versions'])}\n"
        f"{device['kind']}: {peak['bandwidth'] / 1e9:.3g} GB/s, {peak['flops'] / 1e12:.3g} TFLOP/s ({peak['source']})\n"
        f"{workload['shape']}, {workload['dtype']}, {workload['rows']} rows, prefill of {workload['prefill']} tokens, "
        f"context of {workload['context']}, ranks {ranks}, {workload['rounds']} rounds"
    )


def table(results: list[Result], backend: str) -> Table:
    """One row a case: the backend's own beside its floor and its peers, which are so many times slower."""
    grid = Table(
        title="Microseconds a call: medians (smallest .. largest); of XLA's plain forms, how many times the backend's",
        caption=f"{CACHED} these operands fit into the cache, and may be read faster than the floor has it",
    )
    names = dict.fromkeys(peer.name for result in results for peer in result.outcomes[1:])
    for column in ("op", "mix"):
        grid.add_column(column)
    for column in ("floor", "by", backend, "over floor", *names, "error"):
        grid.add_column(column, justify="right")
    for result in results:
        own, *peers = result.outcomes
        by_name = {peer.name: peer for peer in peers}
        grid.add_row(
            result.op,
            result.mix,
            f"{result.floor:.1f}{CACHED if result.cached else ''}",
            result.bound,
            f"{own.samples.median:.1f} ({own.samples.spread})" if own.timed else "-",
            f"{own.samples.median / result.floor:.2f}" if own.timed else "-",
            *(_peer(by_name.get(name), own) for name in names),
            "-" if own.error is None else f"{own.error:.0e}",
        )
    return grid


def problems(results: list[Result]) -> list[str]:
    """Which implementations were not timed, and why."""
    return [
        f"{' '.join([result.op, result.mix]).rstrip()}: {outcome.name}: {outcome.problem}"
        for result in results
        for outcome in result.outcomes
        if not outcome.timed
    ]


def _peer(peer: Outcome | None, own: Outcome) -> str:
    if peer is None or not peer.timed:
        return "" if peer is None else "-"
    ratio = f" ({peer.samples.ratio(own.samples):.2f}x)" if own.timed else ""
    return f"{peer.samples.median:.1f}{ratio}"


def _fields(outcome: Outcome) -> dict[str, Any]:
    samples = outcome.samples
    return {
        "name": outcome.name,
        "error": outcome.error,
        "problem": outcome.problem,
        "median_us": samples.median if outcome.timed else None,
        "values_us": samples.values,
    }
