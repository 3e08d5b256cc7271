from collections.abc import Callable, Iterator
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from openlora_jax.llm import resolve_ops
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.transformer import Transformer
from openlora_jax.model.weights import random_weights, with_values
from openlora_jax.training import train as loop
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.data import Batch, Example
from openlora_jax.training.loss import completion_loss
from openlora_jax.training.ops import with_gradients
from openlora_jax.training.recipe import Recipe
from pallas_kernels.registry import Ops
from tests.openlora_jax.tiny import MODEL

Loss = Callable[[TrainedAdapter, Batch], tuple[jax.Array, TrainedAdapter]]
Training = tuple[TrainedAdapter, list[float], list[tuple[str, int, int]]]
RECIPE = Recipe(rank=3, targets=("q_proj", "v_proj", "down_proj"), steps=24, batch=2, learning_rate=1e-2)
"""One for all tests, so that they share their programs."""


@pytest.fixture
def loose_dtypes() -> Iterator[None]:
    """For optax, whose schedules raise floats to integer powers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def ops() -> Ops:
    return resolve_ops("cpu")


@pytest.fixture(scope="session")
def parameters() -> Parameters:
    """Those of the tiny base, without its files."""
    model = Transformer(MODEL)
    with_values(model, {name: jnp.asarray(value) for name, value in random_weights(MODEL, 0, 0.2).items()})
    return Parameters.of(model)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Three lengths, and two widths: the last one is longer than a batch of the others."""
    return [Example(tuple(range(3 + n, 3 + n + length)), length - 4) for n, length in enumerate((6, 20, 70))]


@pytest.fixture(scope="session")
def loss(ops: Ops, parameters: Parameters) -> Loss:
    """The loss, and its gradient."""
    compiled = jax.jit(jax.value_and_grad(partial(completion_loss, config=MODEL, ops=with_gradients(ops))))
    return lambda adapter, batch: compiled(adapter, parameters=parameters, batch=batch)


@pytest.fixture(scope="session")
def training(ops: Ops, parameters: Parameters, examples: list[Example]) -> Training:
    """An adapter as trained, the losses, and the progress; in which no step was traced but the first of its width."""
    seen: list[tuple[str, int, int]] = []
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "completion_loss", chex.assert_max_traces(completion_loss, n=2))
        adapter, losses = loop.train(parameters, MODEL, ops, examples, RECIPE, lambda *progress: seen.append(progress))
    return adapter, losses, seen
