"""Both steps with room for heads and embeddings of adapters' own, more than 4 GiB of each, compiled for other chips."""

import pytest

from openlora_jax.bench.models import LLAMA_8B
from pallas_kernels.registry import implementations
from tests.gpu.budget import SHALLOW, WORKLOAD
from tests.gpu.cases import CHIPS, KINDS, Case, Kind, compiled, mostly_slow, reason_to_skip
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import step
from tests.gpu.workloads import SAVED

[(NAME, OWN)] = SAVED.items()
COMPILED: list[tuple[str, Kind]] = [*((chip, "decode") for chip in CHIPS), ("h100", "prefill")]
compiles = pytest.mark.gpu_compile
needs_compiler = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_one_launch_and_pools_are_past_4_gib(kind: Kind) -> None:
    program = step(kind, OWN.at_depth(1), implementations("cuda"))
    kernels = triton_kernels(lower_cuda(program.function, *program.operands.values(), donated=program.donated))
    assert kernels["saved_linear_kernel"] == 1
    pool = program.operands["pools"]["lm_head.saved"][0]
    assert pool.size * pool.dtype.itemsize > 1 << 32


@compiles
@needs_compiler
@pytest.mark.parametrize(("chip", "kind"), mostly_slow(COMPILED))
def test_they_cost_two_launches_and_no_memory_beside_their_pools(chip: str, kind: Kind) -> None:
    """That of the head, and the embedding's gather where it is no part of another launch."""
    saved, plain = (compiled(Case(chip, kind, workload, SHALLOW)) for workload in (NAME, WORKLOAD))
    assert saved.copied == []
    assert saved.launches - plain.launches <= 2
    assert saved.temporary - plain.temporary < 2 * LLAMA_8B.vocab_size * LLAMA_8B.hidden_size / 100
    kernel = saved.kernels["saved_linear_kernel"]
    assert kernel.spilled == 0
    assert kernel.mma != "none"
