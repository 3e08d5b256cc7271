"""What the host of a GPU must not be asked for: a step has no branch and no loop of unknown length."""

import re
from dataclasses import replace

import pytest

from pallas_kernels.registry import Ops, implementations
from pallas_kernels.shortcut import taken
from tests.gpu.cases import KINDS, Kind
from tests.gpu.lowering import lower_cuda
from tests.gpu.steps import step
from tests.gpu.workloads import WORKLOADS

CUDA = implementations("cuda")


def control_flow(kind: Kind, ops: Ops) -> set[str]:
    """Of a step of one layer, as JAX hands it to XLA."""
    program = step(kind, WORKLOADS["smollm2-135m"].at_depth(1), ops)
    lowered = lower_cuda(program.function, *program.operands.values())
    return set(re.findall(r"stablehlo\.(case|if|while)\b", lowered.as_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_gpu_asks_the_host_for_nothing(kind: Kind) -> None:
    assert control_flow(kind, CUDA) == set()


def test_what_asks_is_noticed() -> None:
    cpu = implementations("cpu")
    assert control_flow("prefill", replace(CUDA, shortcut=taken)) == {"case"}
    assert control_flow("decode", replace(CUDA, paged_attention=cpu.paged_attention)) == {"while"}
