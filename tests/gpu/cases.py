"""The programs that are compiled for chips that this machine lacks, each in a process of its own: XLA may abort."""

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest.mark import ParameterSet

from tests.gpu.facts import Facts, Kernel

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 900.0

Kind = Literal["decode", "prefill"]
Variant = Literal["whole", "base", "ensembles", "slicing", "keeping"]
CHIPS = ("a100", "h100", "b200")
SMALL_CHIP = "l4"
"""With the least shared memory of all that kernels are for: 99 KB for a program, as an A10G and an RTX 4090 have."""
MOSAIC_CHIPS = ("h100", "b200")
KINDS: tuple[Kind, ...] = ("decode", "prefill")
STEPS = tuple(product(CHIPS, KINDS))
QUICK = ("h100", "decode")
"""What CI compiles of a feature that only some use; `make test-gpu-compile` compiles all."""


def mostly_slow(steps: Iterable[tuple[str, Kind]]) -> list[ParameterSet]:
    """Chips and steps as a test's parameters; all but `QUICK` are slow."""
    return [pytest.param(*each, marks=() if each == QUICK else pytest.mark.slow) for each in steps]


@dataclass(frozen=True, slots=True)
class Case:
    """A step of a workload at some depth, on a chip.

    Attributes:
        variant: `whole` is what the engine runs, `base` leaves the adapters out, `ensembles` is what decodes these. How
            not to do it: `slicing` cuts each layer's pages out of the pool, `keeping` donates nothing.
    """

    chip: str
    kind: Kind
    workload: str
    layers: int
    variant: Variant = "whole"


class CompileFailed(Exception):
    """The compiler refused a program, or did not survive it."""


def reason_to_skip() -> str | None:
    """Why nothing can be compiled for a GPU here."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        return "JAX's CUDA plugin is not in this environment; `make test-gpu-compile` makes one that has it"
    return None


@functools.cache
def compiled(case: Case) -> Facts:
    """What a case's program says of itself.

    Raises:
        CompileFailed: with the end of what the child wrote.
    """
    return Facts.of(_written_by("tests.gpu.deviceless", *map(str, dataclasses.astuple(case))))


@functools.cache
def compiled_vast(chip: str) -> dict[str, Kernel]:
    """LoRA's kernels on pools past 4 GiB.

    Raises:
        CompileFailed: with the end of what the child wrote.
    """
    return _kernels_by("tests.gpu.vast", chip)


@functools.cache
def compiled_alone(chip: str) -> dict[str, Kernel]:
    """Kernels that only some models or adapters need: by op, and the format or the step.

    Raises:
        CompileFailed: with the end of what the child wrote.
    """
    return _kernels_by("tests.gpu.alone", chip)


def _kernels_by(module: str, chip: str) -> dict[str, Kernel]:
    return {name: Kernel(**kernel) for name, kernel in _written_by(module, chip).items()}


def _written_by(module: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *arguments]
    # A program out of the cache would not be compiled, and say nothing.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, cwd=ROOT, env=environment)
    if child.returncode != 0:
        raise CompileFailed(f"{module} {arguments}: status {child.returncode}\n{child.stderr[-4000:]}")
    written: dict[str, Any] = json.loads(child.stdout)
    return written
