"""The loss and its gradient, held against the engine and against differences."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax import LLM
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.data import WIDTH, Example, pack
from tests.openlora_jax.tiny import MODEL
from tests.openlora_jax.training.conftest import RECIPE, Loss


@pytest.fixture(scope="module")
def adapter() -> TrainedAdapter:
    """One that is not the base any more."""
    fresh = TrainedAdapter.create(MODEL, RECIPE)
    keys = iter(jax.random.split(jax.random.key(1), 7))
    return replace(
        fresh,
        factors={
            module: each._replace(b=0.1 * jax.random.normal(next(keys), each.b.shape))
            for module, each in fresh.factors.items()
        },
    )


def test_a_fresh_adapter_is_the_base_as_the_engine_scores_it(
    loss: Loss, examples: list[Example], tiny_llm: LLM
) -> None:
    fresh = TrainedAdapter.create(MODEL, RECIPE)
    scored = tiny_llm.score(
        [each.tokens[: each.completion] for each in examples], [each.tokens[each.completion :] for each in examples]
    )
    due = -np.mean([logprob for each in scored for logprob in each.logprobs])
    assert float(loss(fresh, pack(examples, 3))[0]) == pytest.approx(due, abs=1e-4)


def test_the_gradient_is_that_of_the_targets_factors(
    loss: Loss, examples: list[Example], adapter: TrainedAdapter
) -> None:
    batch = pack(examples[:2], 3)
    _, gradient = loss(adapter, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, adapter)
    moving = {module for module, each in gradient.factors.items() if each.a.size and jnp.abs(each.a).max() > 1e-4}
    assert moving == set(RECIPE.targets)
    keys = iter(jax.random.split(jax.random.key(2), 14))
    along = jax.tree.map(lambda each: jax.random.normal(next(keys), each.shape), adapter)
    ahead, behind = (
        loss(jax.tree.map(lambda at, by, far=far: at + far * by, adapter, along), batch)[0] for far in (1e-3, -1e-3)
    )
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, along)))
    assert float(ahead - behind) / 2e-3 == pytest.approx(float(slope), rel=1e-2)


def test_padding_means_nothing(loss: Loss, examples: list[Example], adapter: TrainedAdapter) -> None:
    once = loss(adapter, pack(examples[1:2], 3))
    chex.assert_trees_all_close(once, loss(adapter, pack([examples[1]] * 3, 3)), atol=1e-5)
    garbage = np.full((3, 2 * WIDTH), 9, np.int32)
    garbage[0, :20] = examples[1].tokens
    chex.assert_trees_all_close(once, loss(adapter, pack(examples[1:2], 3)._replace(tokens=garbage)), atol=1e-5)
