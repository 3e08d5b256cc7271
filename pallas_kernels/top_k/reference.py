"""The plain form, and the oracle of the others."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def top_k(x: Float[Array, "T V"], k: int) -> tuple[Float[Array, "T {k}"], Int[Array, "T {k}"]]:
    """The first k of the whole row, sorted."""
    columns = jnp.argsort(x, axis=1, stable=True, descending=True)[:, :k].astype(jnp.int32)
    return jnp.take_along_axis(x, columns, axis=1), columns
