"""`python -m tests.gpu.proof`: compiles both steps of whole models for every chip, and writes down what came of it."""

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.gpu.cases import CHIPS, KINDS, ROOT, Case, Variant, compiled, compiled_alone
from tests.gpu.facts import assembler
from tests.gpu.workloads import FEW_ROWS, WORKLOADS

MEASURED = ROOT / "docs" / "gpu_proof.json"
REPORT = MEASURED.with_suffix(".md")
EMULATED = Path(__file__).with_name("emulated.json")
"""Per kernel, step and chip: what executing its PTX in an emulator gave, and of which commit; written by hand."""

TOGETHER = 2
"""Compilers at work, each a process of a core and of up to 2 GB."""

HEAD = """\
# Whole models, compiled for GPUs that were not there

`make gpu-proof` writes this page. XLA compiled every program below from a description of the chip alone ({versions}),
in bfloat16, with 64 rows, the smallest bucket's 8, or a chunk of 2048 tokens, and 64 adapters of ranks 8 to 64 in the
pool. [gpu.md](gpu.md) says how, and what this does not show: nothing here has run on a GPU.

## Steps

*In place* is what a step writes over its operands: all of the KV cache and the sampler's state. *Copied* are arrays of
these or of the adapters' pool. *Adapters add* is the difference to the same step without them.

"""
KERNELS = """
## Kernels

All of them compile. Where a step has a kernel in several shapes, the figures are the most that any of them takes.

What comes after *mma* is from executing the PTX that XLA made in an emulator, at sizes that it can bear, so it is the
same for both models. The emulator knows no `tcgen05`, hence no B200. *Error* is the largest difference to float64
relative to the largest value. *Sectors* is the traffic in units of 32 bytes over the fewest bytes that could be read or
written. *Warp instructions* are those of all programs. Both are of an adapter of ranks 16 to 256 and 4096 columns in
decode, 1024 in prefill; of 576 to 4096 columns for the embedding; of attention over 4096 positions in decode, whole or
split, up to 2048 in prefill. LoRA was executed in both of its forms, in place and with sums that XLA adds, which rounds
once more; on an A100, the longer prefills in place alone. *Tree* is the commit that the figures were written down with,
by hand, for `make gpu-proof` has no emulator.

The search for a row's threshold finds what XLA's form of it finds on a CPU, bit for bit, so its error is 0, and it
keeps the tokens that sorting would. Its sectors are those of a pass over the weights, which it makes as often as it
has to, its warp instructions those of 3 rows of 128,256 weights, of which one is settled.

A prefill was a single tile. To fill the chip it is cut into 8 programs, and each reads the input and A, all but the
first out of the L2 cache; the 32 tiles of a whole chunk are cut in two at most. Attention in prefill reads keys and
values once for each 128 rows.

Races: the emulator stops where a warp reads shared memory that another one wrote with no barrier between. Lowered
kernels were also executed program by program, in random order, stopping where one reads or writes what another wrote.
Neither found any. With the barriers taken out, and with programs' shares made to overlap, both do.

Bad input: with page ids from -2147483648 to 2147483647, starts before and ends behind the list, and ends before starts,
no access is out of bounds, and the other items are added right (4.2e-03); so with 60 random tables, starts and lengths
of any value for attention. With the checks of pages and blocks taken out, accesses out of bounds are found. Pools and
caches past 4 GiB are read right at their end.

"""
ALONE = """
## Kernels that only some models or adapters need

Compiled alone, for Llama-3.1-8B's sizes: products of 1, 64 and 128 rows, the most that the kernel has, by a small, a
wide and a long matrix in each format; gains and biases for all rows or tiles of a step, on q/k/v and down; pages in 4
bits for the same, on o and down; logits of 1 and 64 rows by 5 heads of adapters' own, past 4 GiB; attention over keys
and values in int8. What comes after *mma* is from the emulator again: products of 1 to 128 rows and 576 to 4096
columns, gains and biases of 576 to 14336, pages in 4 bits of ranks 16 to 256 and 576 to 4096 columns, heads of 576 to
4096 columns for 1 to 100 rows, attention over 1 to 4096 positions.

*Sectors* of a product are those of codes, scales and offsets at 4096 columns and up to 64 rows, and in parentheses with
what a program asks for again, out of the L1 cache: a turn of its loop takes 2 to 8 bytes of a sector of scales, and
nf4's levels are looked up one by one. More rows read the matrix once for each 64. Each program also reads all of x, as
the tiles of any product do, out of the L2 cache but for the first. *Warp instructions* are those of a program that has
32 or 64 rows of the matrix; but for int4 in groups of 32 with offsets, those of 4 bits were executed when the place of
a column still took a few more. Sectors of gains and biases are of 1024 columns and more; of fewer the list is no longer
little.

Of pages in 4 bits the figures are of all programs, of ranks 16 to 256 and 4096 columns in decode, 16 to 144 and 1024
in prefill, and in parentheses again what is asked for: scales one by one, and x anew for each 64 ranks. A prefill is a
single tile here too, cut into 8 programs. Of heads the sectors are those of the matrix, which is read once for each 64
rows, and the instructions those of a program. Attention is over 4096 positions in decode, up to 1024 in prefill.

Products, gains and biases were executed as lowered too, program by program, in random order, in 16 and 20 random
shapes, without races, accesses out of bounds or anything left unwritten; lists of any value take `affine` nowhere else
either, and ids, lists, tables, starts and lengths of any value take the other kernels nowhere. Pools and caches past 4
GiB are read right at their end. With the barriers of a kernel taken out, or its waits for copies, and with the check
of pages and blocks taken out, results are wrong or it stops.

"""
STEP_COLUMNS = (
    "model, layers", "step", "chip", "launches", "temporary MB", "in place MB", "copied", "adapters add",
)  # fmt: skip
TAKEN = ("launches", "registers", "spilled", "shared KB", "mma")
EXECUTED = ("error bf16", "error f32", "sectors", "warp instructions", "tree")
KERNEL_COLUMNS = ("kernel", "model", "step", "chip", *TAKEN, *EXECUTED)
ALONE_COLUMNS = ("kernel", "chip", *TAKEN[1:], *EXECUTED)


def main() -> None:
    with ThreadPoolExecutor(TOGETHER) as pool:
        alone = dict(zip(CHIPS, pool.map(_alone, CHIPS), strict=True))
        steps = list(pool.map(_measured, cases()))
    MEASURED.write_text(json.dumps({"versions": _versions(), "steps": steps, "alone": alone}, indent=1) + "\n")
    REPORT.write_text(report())


def cases() -> list[Case]:
    """Every model, whole, in both steps and on every chip; and the decode step of few rows."""
    steps = [(name, kind) for name in WORKLOADS for kind in KINDS] + [(name, KINDS[0]) for name in FEW_ROWS]
    layers = {name: workload.model.num_layers for name, workload in (WORKLOADS | FEW_ROWS).items()}
    return [Case(chip, kind, name, layers[name]) for name, kind in steps for chip in CHIPS]


def _measured(case: Case) -> dict[str, Any]:
    variants: Sequence[Variant] = ("whole", "base") if case.kind == "decode" else ("whole",)
    facts = {variant: compiled(dataclasses.replace(case, variant=variant)) for variant in variants}
    named = {name: value for name, value in dataclasses.asdict(case).items() if name != "variant"}
    return named | {variant: dataclasses.asdict(each) for variant, each in facts.items()}


def _alone(chip: str) -> dict[str, Any]:
    return {name: dataclasses.asdict(kernel) for name, kernel in compiled_alone(chip).items()}


def _versions() -> str:
    ptxas = subprocess.run([assembler(), "--version"], capture_output=True, text=True, check=True).stdout
    return f"JAX {version('jax')}, ptxas {ptxas.split(' V')[-1].split()[0]}"


def report() -> str:
    """The page, from what was measured."""
    measured = json.loads(MEASURED.read_text())
    emulated = json.loads(EMULATED.read_text()) if EMULATED.exists() else {}
    steps = _table(STEP_COLUMNS, [_step_row(step) for step in measured["steps"]])
    kernels = _table(KERNEL_COLUMNS, [row for step in measured["steps"] for row in _kernel_rows(step, emulated)])
    alone = _table(
        ALONE_COLUMNS, [row for chip in CHIPS for row in _alone_rows(chip, measured["alone"][chip], emulated)]
    )
    return HEAD.format(versions=measured["versions"]) + steps + KERNELS + kernels + ALONE + alone


def _step_row(step: dict[str, Any]) -> list[str]:
    whole, base = step["whole"], step.get("base")
    added = "not measured"
    if base is not None:
        launches, temporary = (max(0, whole[name] - base[name]) for name in ("launches", "temporary"))
        added = f"{launches} launches, {temporary:,} bytes ({temporary / whole['pools']:.4%} of the pool)"
    return [
        f"{step['workload']}, {step['layers']}",
        step["kind"],
        step["chip"],
        str(whole["launches"]),
        f"{whole['temporary'] / 1e6:,.1f}",
        f"{whole['aliased'] / 1e6:,.1f} of {whole['donated'] / 1e6:,.1f}",
        ", ".join(whole["copied"]) or "nothing",
        added,
    ]


def _kernel_rows(step: dict[str, Any], emulated: dict[str, Any]) -> Iterable[list[str]]:
    for name, kernel in step["whole"]["kernels"].items():
        run = emulated.get(f"{name} {step['kind']} {step['chip']}", {})
        place = [name, step["workload"], step["kind"], step["chip"]]
        yield [*place, str(kernel["launches"]), *_taken(kernel), *_executed(run)]


def _alone_rows(chip: str, kernels: dict[str, Any], emulated: dict[str, Any]) -> Iterable[list[str]]:
    for name, kernel in kernels.items():
        yield [name, chip, *_taken(kernel), *_executed(emulated.get(f"{name} {chip}", {}))]


def _taken(kernel: dict[str, Any]) -> list[str]:
    return [str(kernel["registers"]), str(kernel["spilled"]), f"{kernel['shared'] / 1024:.0f}", kernel["mma"]]


def _executed(run: dict[str, Any]) -> list[str]:
    return [str(run.get(figure, "")) for figure in EXECUTED]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
