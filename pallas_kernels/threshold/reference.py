"""The plain form, and the oracle of the others: every row sorted."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float32, Int32


def threshold(
    weights: Float32[Array, "T V"], top_k: Int32[Array, "T"], top_p: Float32[Array, "T"], settled: Bool[Array, "T"]
) -> Float32[Array, "T"]:
    """The least weight that is kept."""
    ordered = jnp.sort(weights, axis=1, descending=True)
    kth = jnp.take_along_axis(ordered, top_k[:, None] - 1, axis=1)
    sums = jnp.cumsum(jnp.where(ordered >= kth, ordered, 0), axis=1)
    reached = sums >= top_p[:, None] * sums[:, -1:]
    nucleus = jnp.take_along_axis(ordered, jnp.argmax(reached, axis=1)[:, None], axis=1)
    least = jnp.where(top_p[:, None] < 1, nucleus, kth)[:, 0]
    return jnp.where(settled, 0, least)
