"""Both steps of a quantised base: lowered for CUDA, and compiled by XLA for chips that are not here."""

import pytest

from openlora_jax.bench.models import LLAMA_8B
from openlora_jax.model.stored import weight_bytes
from pallas_kernels.registry import implementations
from tests.gpu import budget
from tests.gpu.budget import DEEP, INT4, SHALLOW, STEPS
from tests.gpu.cases import KINDS, Case, Kind, compiled, mostly_slow, reason_to_skip
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import step
from tests.gpu.workloads import QUANTISED

MATRICES = 4
"""Of a layer: q/k/v, o, gate/up, down."""

each_workload = pytest.mark.parametrize("workload", QUANTISED)
each_step = pytest.mark.parametrize(
    ("chip", "kind"), mostly_slow((chip, kind) for chip, kind, of in STEPS if of == INT4)
)
compiles = pytest.mark.gpu_compile
needs_compiler = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_a_launch_in_decode(kind: Kind) -> None:
    """And the head's in prefill, where it is of one row a tile; the layers' are of a chunk, and XLA's."""
    program = step(kind, QUANTISED[INT4].at_depth(1), implementations("cuda"))
    kernels = triton_kernels(lower_cuda(program.function, *program.operands.values(), donated=program.donated))
    assert kernels["quantized_linear_kernel"] == {"decode": MATRICES + 1, "prefill": 1}[kind]


@each_workload
def test_the_parameters_are_what_the_plan_counts(workload: str) -> None:
    program = step("decode", QUANTISED[workload].at_depth(1), implementations("cuda"))
    bytes_planned = weight_bytes(QUANTISED[workload].at_depth(1).model, "bfloat16")
    assert program.nbytes("parameters") == bytes_planned
    plain = 2 * (2 * LLAMA_8B.vocab_size * LLAMA_8B.hidden_size)
    assert bytes_planned < plain


@compiles
@needs_compiler
@each_step
def test_a_step_stays_within_its_budget(chip: str, kind: Kind) -> None:
    assert budget.breaches(budget.figures(chip, kind, INT4), budget.read(chip, kind, INT4)) == []


@compiles
@needs_compiler
@each_step
def test_nothing_is_copied(chip: str, kind: Kind) -> None:
    """Neither the state nor a weight."""
    facts = compiled(Case(chip, kind, INT4, DEEP))
    assert facts.aliased == facts.donated
    assert facts.copied == []


@compiles
@needs_compiler
def test_numbers_of_a_matrix_are_never_in_memory() -> None:
    """Of any layer, the temporary memory of a decode step holds less than the smallest matrix in 16 bits."""
    shallow, deep = (compiled(Case("h100", "decode", INT4, layers)).temporary for layers in (SHALLOW, DEEP))
    plain = compiled(Case("h100", "decode", "llama-3.1-8b", DEEP)).temporary
    assert deep - plain < 2 * LLAMA_8B.hidden_size**2
    assert deep - shallow < 2 * LLAMA_8B.hidden_size**2
