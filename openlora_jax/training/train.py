"""The training loop: one compiled step, again and again."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from math import isfinite

import jax
import optax
from jax import Array
from jaxtyping import Float32

from openlora_jax.errors import InvalidRequest
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.parameters import Parameters
from openlora_jax.progress import Progress
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.data import Batch, Example, batches
from openlora_jax.training.loss import completion_loss
from openlora_jax.training.ops import with_gradients
from openlora_jax.training.recipe import Recipe
from pallas_kernels.registry import Ops

Step = Callable[
    [TrainedAdapter, optax.OptState, Parameters, Batch], tuple[TrainedAdapter, optax.OptState, Float32[Array, ""]]
]


def train(
    parameters: Parameters,
    config: ModelConfig,
    ops: Ops,
    examples: Sequence[Example],
    recipe: Recipe,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[TrainedAdapter, list[float]]:
    """A fresh adapter, trained; and the loss of each step, before its update.

    Raises:
        InvalidRequest: there is nothing to learn from, or the loss is not finite any more.
    """
    if not examples:
        raise InvalidRequest("data", "has no examples")
    adapter, optimizer = TrainedAdapter.create(config, recipe), recipe.optimizer()
    state, step = optimizer.init(adapter), compiled_step(config, ops, optimizer)
    losses: list[float] = []
    for batch in islice(batches(examples, recipe.batch, recipe.seed), recipe.steps):
        progress(f"training, loss {losses[-1]:.3f}" if losses else "compiling", len(losses), recipe.steps)
        adapter, state, loss = step(adapter, state, parameters, batch)
        losses.append(float(loss))
        if not isfinite(losses[-1]):
            raise InvalidRequest("learning_rate", f"the loss of step {len(losses)} is not finite; choose a smaller one")
    return adapter, losses


def compiled_step(config: ModelConfig, ops: Ops, optimizer: optax.GradientTransformation) -> Step:
    """One update. What comes in is used up, but for the base; a batch of another width compiles anew."""
    loss_and_gradient = jax.value_and_grad(partial(completion_loss, config=config, ops=with_gradients(ops)))

    def step(
        adapter: TrainedAdapter, state: optax.OptState, parameters: Parameters, batch: Batch
    ) -> tuple[TrainedAdapter, optax.OptState, Float32[Array, ""]]:
        loss, gradient = loss_and_gradient(adapter, parameters=parameters, batch=batch)
        updates, state = optimizer.update(gradient, state, adapter)
        return optax.apply_updates(adapter, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))
