"""The loop: what falls, what repeats, and what is refused."""

from itertools import islice

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax.errors import InvalidRequest
from openlora_jax.model.parameters import Parameters
from openlora_jax.training import train as loop
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.data import Example, batches
from openlora_jax.training.recipe import MAX_NORM, Recipe
from openlora_jax.training.train import train
from pallas_kernels.registry import Ops
from tests.openlora_jax.tiny import MODEL
from tests.openlora_jax.training.conftest import RECIPE, Training


def test_the_loss_falls(training: Training) -> None:
    adapter, losses, seen = training
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert [(done, total) for _, done, total in seen] == [(step, 24) for step in range(24)]
    assert [stage for stage, _, _ in seen[:2]] == ["compiling", f"training, loss {losses[0]:.3f}"]
    ranks = {module: each.a.shape[1] for module, each in adapter.factors.items() if each.a.size}
    assert ranks == dict.fromkeys(RECIPE.targets, 3)


def test_a_seed_repeats_the_beginning_and_the_order(examples: list[Example]) -> None:
    one, again, other = (TrainedAdapter.create(MODEL, Recipe(seed=seed)) for seed in (5, 5, 6))
    chex.assert_trees_all_equal(one, again)
    assert not np.array_equal(one.factors["q_proj"].a, other.factors["q_proj"].a)
    orders = [list(islice(batches(examples, 1, seed), 12)) for seed in (5, 5, 6)]
    chex.assert_trees_all_equal(orders[0], orders[1])
    lengths = [[int(batch.length[0]) for batch in order] for order in orders]
    assert lengths[0] != lengths[2]


def test_a_loss_that_is_not_finite_ends_the_training(
    ops: Ops, parameters: Parameters, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(
        loop, "compiled_step", lambda *parts: lambda adapter, state, *rest: (adapter, state, next(losses))
    )
    with pytest.raises(InvalidRequest, match="learning_rate: the loss of step 2 is not finite"):
        train(parameters, MODEL, ops, examples, RECIPE)


def test_nothing_to_learn_from(ops: Ops, parameters: Parameters) -> None:
    with pytest.raises(InvalidRequest, match="data: has no examples"):
        train(parameters, MODEL, ops, [], RECIPE)


@pytest.mark.usefixtures("loose_dtypes")
@pytest.mark.parametrize("steps", [1, 2, 10, 11, 100])
def test_the_learning_rate_rises_then_falls(steps: int) -> None:
    recipe = Recipe(rank=1, targets=("q_proj",), steps=steps, learning_rate=1.0)
    optimizer, weight = recipe.optimizer(), jnp.zeros(1)
    state = optimizer.init(weight)
    rates = []
    for _ in range(steps):
        update, state = jax.jit(optimizer.update)(jnp.full(1, MAX_NORM), state, weight)
        rates.append(-float(update[0]))
    peak = int(np.argmax(rates))
    assert peak == min(10, steps - 1)
    assert rates[peak] == pytest.approx(1.0, abs=1e-3)
    assert min(rates) > 0
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: "),
        ({"rank": 257}, "rank: "),
        ({"alpha": 0.0}, "alpha: "),
        ({"targets": ("q_proj", "lm_head")}, "targets: "),
        ({"targets": ()}, "targets: "),
        ({"steps": 0}, "steps: "),
        ({"learning_rate": float("nan")}, "learning_rate: "),
        ({"ranks": 3}, "ranks: "),
    ],
)
def test_recipes_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Recipe.of(settings)


def test_a_fresh_adapter_begins_as_pefts() -> None:
    adapter = TrainedAdapter.create(MODEL, Recipe(rank=64, alpha=16.0))
    assert adapter.scale == 0.25
    for each in adapter.factors.values():
        bound = each.a.shape[2] ** -0.5
        assert 0.95 * bound < float(jnp.abs(each.a).max()) <= bound
        assert not each.b.any()
    assert not np.array_equal(adapter.factors["q_proj"].a, adapter.factors["o_proj"].a)
