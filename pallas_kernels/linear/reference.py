"""The plain form, and the oracle of the others."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def linear(
    x: Float[Array, "T L I"], weights: tuple[Float[Array, "O I"], ...], layer: Int[Array, ""]
) -> Float[Array, "T L O"]:
    """y = x W_layer^T."""
    return x @ jnp.stack(weights)[layer].T
