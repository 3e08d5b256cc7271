"""The plain form, and the oracle of the others."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex


def linear(
    x: Float[Array, "T L I"], weights: tuple[Float[Array, "O I"], ...], layer: LayerIndex
) -> Float[Array, "T L O"]:
    """y = x W_layer^T."""
    return x @ jnp.stack(weights)[layer].T
