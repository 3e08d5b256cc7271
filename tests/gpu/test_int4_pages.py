"""Both steps with pages in 4 bits beside plain ones: lowered for CUDA, and compiled by XLA without one."""

import pytest

from pallas_kernels.registry import implementations
from tests.gpu.budget import DEEP, SHALLOW
from tests.gpu.cases import KINDS, STEPS, Case, Kind, compiled, mostly_slow, reason_to_skip
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import step
from tests.gpu.workloads import INT4_PAGES, PROJECTION_GROUPS

SHARED = 99 * 1024
"""What an L4 has for a program. Registers, not these, bound how many are resident: of 256 threads at most two."""
(WORKLOAD,) = INT4_PAGES
needs_compiler = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_one_launch_more(kind: Kind) -> None:
    program = step(kind, INT4_PAGES[WORKLOAD].at_depth(1), implementations("cuda"))
    kernels = triton_kernels(lower_cuda(program.function, *program.operands.values(), donated=program.donated))
    assert kernels["int4_lora_kernel"] == PROJECTION_GROUPS


@pytest.mark.gpu_compile
@needs_compiler
@pytest.mark.parametrize(("chip", "kind"), mostly_slow(STEPS))
def test_the_kernel_keeps_to_registers_and_tensor_cores(chip: str, kind: Kind) -> None:
    facts = compiled(Case(chip, kind, WORKLOAD, SHALLOW))
    kernel = facts.kernels["int4_lora_kernel"]
    assert kernel.spilled == 0
    assert kernel.mma != "none"
    assert kernel.shared <= SHARED
    assert not facts.copied


@pytest.mark.gpu_compile
@pytest.mark.slow
@needs_compiler
def test_numbers_of_a_page_are_never_in_memory() -> None:
    """Two layers more need no more temporary memory than the outputs that a layer's launches add to."""
    shallow, deep = (compiled(Case("h100", "decode", WORKLOAD, layers)).temporary for layers in (SHALLOW, DEEP))
    assert deep - shallow < 2 * 1024**2
