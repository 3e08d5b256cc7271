"""Every implementation of an op: checked against the reference, then timed in turn with the others."""

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.bench.kernels.affine_cases import affine_cases
from openlora_jax.bench.kernels.attention_cases import attention_case, kv_write_case
from openlora_jax.bench.kernels.case import Case, Step
from openlora_jax.bench.kernels.devices import Peak
from openlora_jax.bench.kernels.int4_lora_cases import int4_lora_cases
from openlora_jax.bench.kernels.lora_cases import embedding_lora_cases, head_lora_cases, lora_cases
from openlora_jax.bench.kernels.quantized_cases import FORMATS, quantized_linear_case
from openlora_jax.bench.kernels.sampling_cases import threshold_case, top_k_case
from openlora_jax.bench.kernels.saved_cases import saved_linear_case
from openlora_jax.bench.kernels.workload import KINDS, MIXES, Workload
from openlora_jax.bench.samples import Samples
from openlora_jax.config import Dtype
from openlora_jax.progress import Progress
from pallas_kernels.registry import Ops

SAMPLE_SECONDS = 0.03
"""What the dispatches of one sample take together, about."""
MOST_DISPATCHES = 1000

TOLERANCE: dict[Dtype, float] = {"float32": 1e-5, "bfloat16": 1e-2}
"""The largest error of an implementation, as a share of the largest number of the reference."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one implementation; one that fails, or is wrong, is not timed.

    Attributes:
        error: the largest one, as a share of the largest number of the reference; None if it did not run.
        problem: why it was not timed.
        samples: microseconds a call.
    """

    name: str
    error: float | None = None
    problem: str | None = None
    samples: Samples = field(default_factory=lambda: Samples("", "us"))

    @property
    def timed(self) -> bool:
        return bool(self.samples.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of a case.

    Attributes:
        floor: the least that a call may take, in microseconds.
        bound: which of bytes and FLOPs sets it.
        cached: bytes set it, but all of them fit into the device's cache, which may deliver them faster.
        outcomes: its implementations, the backend's own first.
    """

    op: str
    mix: str
    nbytes: int
    operations: int
    floor: float
    bound: str
    cached: bool
    outcomes: tuple[Outcome, ...]


def measure(workload: Workload, ops: Ops, peak: Peak, progress: Progress) -> list[Result]:
    """All cases, one after the other."""
    of_mixes = len(KINDS) * (2 * len(workload.groups) + 1) + 2
    total = len(MIXES) * of_mixes + 4 * len(KINDS) + len(FORMATS) * len(workload.groups) + 3
    done = itertools.count()

    def result(case: Case) -> Result:
        progress(f"{case.op} {case.mix}".rstrip(), next(done), total)
        floor, bound = peak.floor(case.nbytes, case.operations)
        return Result(
            op=case.op,
            mix=case.mix,
            nbytes=case.nbytes,
            operations=case.operations,
            floor=1e6 * floor,
            bound=bound,
            cached=bound == "bytes" and case.footprint < peak.cache,
            outcomes=outcomes(case, workload),
        )

    # Nothing here may keep a case while the next one is made: each takes gigabytes on a large model.
    return list(map(result, _cases(workload, ops, peak.cache)))


def _cases(workload: Workload, ops: Ops, cache: int) -> Iterator[Case]:
    for kind in KINDS:
        for group in workload.groups:
            yield from lora_cases(workload, ops, cache, kind, group)
            yield from int4_lora_cases(workload, ops, cache, kind, group)
    yield from head_lora_cases(workload, ops)
    yield from embedding_lora_cases(workload, ops)
    for kind in KINDS:
        yield from affine_cases(workload, ops, cache, kind, workload.groups[0])
    for kind in KINDS:
        for kv_dtype in (workload.dtype, "int8"):
            yield attention_case(workload, ops, cache, kind, kv_dtype)
            yield kv_write_case(workload, ops, kind, kv_dtype)
    for group in workload.groups:
        for how in FORMATS:
            yield quantized_linear_case(workload, ops, cache, group, how)
    yield saved_linear_case(workload, ops)
    yield top_k_case(workload, ops)
    yield threshold_case(workload, ops)


def outcomes(case: Case, workload: Workload) -> tuple[Outcome, ...]:
    """Checks the implementations of a case, and times those that are right: one sample each a round."""
    with jax.default_matmul_precision("highest"):
        want = jax.jit(case.program(case.reference))(case.operands[0], case.carry)
    tried = [_tried(case, name, step, want, TOLERANCE[workload.dtype]) for name, step in case.steps.items()]
    for _ in range(workload.rounds):
        for outcome, arm in tried:
            if arm:
                outcome.samples.values.append(1e6 * arm.seconds_a_call())
    return tuple(outcome for outcome, _ in tried)


class Arm:
    """One implementation of a case, compiled and run once.

    Attributes:
        carry: what the last dispatch gave; the next one writes over it.
    """

    def __init__(self, case: Case, step: Step) -> None:
        self._case = case
        self._run = jax.jit(case.program(step), donate_argnums=1)
        self._operands = itertools.cycle(case.operands)
        self.carry = jax.tree.map(jnp.copy, case.carry)
        self._dispatch(1)

    @functools.cached_property
    def _dispatches(self) -> int:
        """As many as fill a sample; the first of those that tell warms up."""
        self._dispatch(1)
        return min(max(round(3 * SAMPLE_SECONDS / self._dispatch(3)), 1), MOST_DISPATCHES)

    def seconds_a_call(self) -> float:
        """The mean of one sample."""
        return self._dispatch(self._dispatches) / (self._dispatches * self._case.calls)

    def _dispatch(self, number: int) -> float:
        """Seconds of so many in a row, waited for at the end alone."""
        began = time.perf_counter()
        for operands in itertools.islice(self._operands, number):
            self.carry = self._run(operands, self.carry)
        jax.block_until_ready(self.carry)
        return time.perf_counter() - began


def _tried(case: Case, name: str, step: Step, want: Any, tolerance: float) -> tuple[Outcome, Arm | None]:
    try:
        arm = Arm(case, step)
    except Exception as problem:  # whatever a compiler or a device throws is a finding, and not the end of the others
        return Outcome(name, problem=_brief(problem)), None
    error = relative_error(arm.carry, want)
    if not error <= tolerance:  # which NaN is not either
        return Outcome(name, error, f"wrong by {error:.1e}, where {tolerance:.0e} is allowed"), None
    return Outcome(name, error), arm


def _brief(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"


def relative_error(got: Any, want: Any) -> float:
    """The largest difference, as a share of the largest number wanted; NaN where there is a NaN."""

    @jax.jit
    def error(got: Array, want: Array) -> Array:
        got, want = got.astype(jnp.float32), want.astype(jnp.float32)
        return jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want))

    return float(np.max(jax.tree.leaves(jax.tree.map(error, got, want))))
