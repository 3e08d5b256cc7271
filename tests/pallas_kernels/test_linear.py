"""Every implementation of `linear` against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear import reference, xla
from pallas_kernels.linear.api import Linear


@pytest.mark.parametrize("linear", [reference.linear, xla.linear], ids=["reference", "xla"])
@pytest.mark.parametrize(("tiles", "tokens"), [(1, 1), (4, 1), (16, 1), (3, 16), (16, 16)])
def test_linear_multiplies_by_the_layer_asked_for(linear: Linear, tiles: int, tokens: int) -> None:
    generator = np.random.default_rng(tiles * 100 + tokens)
    x = generator.normal(size=(tiles, tokens, 36)).astype(np.float32)
    weights = generator.normal(size=(3, 20, 36)).astype(np.float32)
    for layer in range(3):
        y = jax.jit(linear)(jnp.asarray(x), tuple(map(jnp.asarray, weights)), jnp.int32(layer))
        np.testing.assert_allclose(y, x.astype(np.float64) @ weights[layer].astype(np.float64).T, atol=1e-4)


def test_a_known_layer_is_picked() -> None:
    """As an unrolled loop calls it: the other layers' weights are not in the program at all."""
    x = jnp.ones((2, 1, 4), jnp.float32)
    weights = tuple(jnp.full((3, 4), value, jnp.float32) for value in (1.0, 2.0, 3.0))
    picked = jax.make_jaxpr(lambda x, weights: reference.linear(x, weights, np.asarray(1, np.int32)))(x, weights)
    assert [equation.primitive.name for equation in picked.eqns if equation.primitive.name == "concatenate"] == []
    np.testing.assert_array_equal(reference.linear(x, weights, np.asarray(1, np.int32)), 8.0)
