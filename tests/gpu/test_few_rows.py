"""The decode step of few rows: attention and LoRA are cut finer, so that their programs fill a chip."""

import pytest

from pallas_kernels.registry import implementations
from tests.gpu.budget import SHALLOW
from tests.gpu.cases import CHIPS, Case, Kind, compiled, mostly_slow, reason_to_skip
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import step
from tests.gpu.workloads import FEW_ROWS, PROJECTION_GROUPS

[(NAME, WORKLOAD)] = FEW_ROWS.items()
DECODE: list[tuple[str, Kind]] = [(chip, "decode") for chip in CHIPS]


def test_positions_are_split_and_joined() -> None:
    program = step("decode", WORKLOAD.at_depth(1), implementations("cuda"))
    kernels = triton_kernels(lower_cuda(program.function, *program.operands.values(), donated=program.donated))
    assert kernels["paged_attention_kernel"] == kernels["join_splits_kernel"] == 1


@pytest.mark.gpu_compile
@pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))
@pytest.mark.parametrize(("chip", "kind"), mostly_slow(DECODE))
def test_kernels_do_not_spill_and_state_stays_where_it_lies(chip: str, kind: Kind) -> None:
    facts = compiled(Case(chip, kind, NAME, SHALLOW))
    assert {name: kernel.spilled for name, kernel in facts.kernels.items()} == dict.fromkeys(facts.kernels, 0)
    assert facts.kernels["lora_kernel"].launches == PROJECTION_GROUPS * SHALLOW + 1
    assert facts.kernels["join_splits_kernel"].launches == SHALLOW
    assert facts.aliased == facts.donated
    assert facts.copied == []
