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
