"""Both steps with keys and values in int8: lowered for CUDA, and compiled by XLA for chips that are not here."""

import pytest

from openlora_jax.bench.models import LLAMA_8B
from pallas_kernels.registry import implementations
from tests.gpu.budget import SHALLOW
from tests.gpu.cases import KINDS, STEPS, Case, Kind, compiled, mostly_slow, reason_to_skip
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import step
from tests.gpu.workloads import KV_INT8, KV_INT8_VAST, WORKLOADS

(NAME,), (VAST,), PLAIN = KV_INT8, KV_INT8_VAST, "llama-3.1-8b"
each_step = pytest.mark.parametrize("kind", KINDS)


@each_step
def test_attention_is_as_many_launches_as_ever(kind: Kind) -> None:
    found = []
    for workload in (KV_INT8[NAME], WORKLOADS[PLAIN]):
        program = step(kind, workload.at_depth(1), implementations("cuda"))
        found.append(triton_kernels(lower_cuda(program.function, *program.operands.values(), donated=program.donated)))
    assert found[0] == found[1]


def test_the_cache_takes_half_of_bfloat16_and_its_scales() -> None:
    coded, plain = (
        step("decode", workload, implementations("cuda")).nbytes("kv") for workload in (KV_INT8[NAME], WORKLOADS[PLAIN])
    )
    assert coded * 2 * LLAMA_8B.head_dim == plain * (LLAMA_8B.head_dim + 4)


def test_keys_of_two_layers_are_past_4_gib() -> None:
    keys = step("decode", KV_INT8_VAST[VAST].at_depth(SHALLOW), implementations("cuda")).operands["kv"].keys
    assert keys.size > 1 << 32


@pytest.mark.gpu_compile
@pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))
@pytest.mark.parametrize(("chip", "kind"), mostly_slow(STEPS))
@pytest.mark.parametrize("name", [NAME, VAST])
def test_codes_become_numbers_in_registers(chip: str, kind: Kind, name: str) -> None:
    """On tensor cores, without spills; and the cache stays where it lies."""
    facts = compiled(Case(chip, kind, name, SHALLOW))
    kernel = facts.kernels["paged_attention_kernel"]
    assert kernel.spilled == 0
    assert kernel.mma != "none"
    assert facts.aliased == facts.donated
    assert facts.copied == []
