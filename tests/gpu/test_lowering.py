"""Both steps lower for CUDA on a machine without a GPU, at the sizes of real models, of which nothing is allocated."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from openlora_jax.adapters.pages import pool_capacities
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.config import EngineConfig
from openlora_jax.engine.plan import StepPlan
from openlora_jax.engine.runner import DeviceRunner
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.transformer import Transformer
from openlora_jax.model.weights import random_weights, with_values
from pallas_kernels.registry import implementations
from pallas_kernels.shortcut import declined
from pallas_kernels.triton_call import triton_call
from tests.gpu.cases import KINDS, Kind
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.gpu.steps import step, without_adapters
from tests.gpu.workloads import WORKLOADS, Workload
from tests.openlora_jax.tiny import MODEL, SETTINGS

each_step = pytest.mark.parametrize("kind", KINDS)


@each_step
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_step_lowers_for_cuda(workload: str, kind: Kind) -> None:
    """With one launch for all modules that share an input: four a layer, and the head."""
    one, two = (_kernels(kind, WORKLOADS[workload].at_depth(layers)) for layers in (1, 2))
    assert two - one == {"lora_kernel": 4, "paged_attention_kernel": 1}
    assert one["lora_kernel"] == 4 + 1


def _kernels(kind: Kind, workload: Workload) -> Counter[str]:
    lowered = step(kind, workload, implementations("cuda"))
    return triton_kernels(lower_cuda(lowered.function, *lowered.operands.values(), donated=lowered.donated))


@each_step
def test_what_a_base_model_runs_has_no_adapters(kind: Kind) -> None:
    ops = without_adapters(implementations("cuda"))
    lowered = step(kind, WORKLOADS["smollm2-135m"].at_depth(1), ops)
    kernels = triton_kernels(lower_cuda(lowered.function, *lowered.operands.values()))
    assert not any("lora" in name for name in kernels)


@each_step
def test_operands_are_what_the_runner_dispatches(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineConfig(**SETTINGS)
    ops = replace(implementations("cpu"), shortcut=declined)
    model = Transformer(MODEL)
    with_values(model, {name: jnp.asarray(value) for name, value in random_weights(MODEL, seed=0).items()})
    pool = AdapterPool.create(MODEL, pool_capacities(engine), jnp.dtype(engine.dtype))
    runner = DeviceRunner(engine, MODEL, ops, Parameters.of(model), pool)
    dispatched: list[Any] = []
    monkeypatch.setattr(runner, f"_{kind}", _recorder(getattr(runner, f"_{kind}"), dispatched))
    runner.run(StepPlan(kind, ()))
    operands = step(kind, Workload(MODEL, engine), ops).operands
    assert dispatched == [_types(tuple(operands.values()))]


def _recorder(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def called(*operands: Any) -> Any:
        calls.append(_types(operands))
        return function(*operands)

    return called


def _types(operands: tuple[Any, ...]) -> list[tuple[tuple[int, ...], Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(operands)]


def test_a_kernel_that_triton_cannot_have_does_not_lower() -> None:
    def odd_kernel(x_ref: Any, y_ref: Any) -> None:
        y_ref[jnp.arange(96)] = x_ref[jnp.arange(96)]

    shape = jax.ShapeDtypeStruct((96,), jnp.float32)
    with pytest.raises(ValueError, match="power of 2"):
        lower_cuda(triton_call(odd_kernel, shape, grid=(1,), warps=1, stages=1), shape)
