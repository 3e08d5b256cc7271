"""XLA's own selection: whole rows where it selects, blocks of them first where it sorts."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

BLOCK = 32
"""Columns of a block. Of 128256 columns and k = 64, 4008 block maxima and then 2048 candidates are sorted."""


def by_rows(x: Float[Array, "T V"], k: int) -> tuple[Float[Array, "T {k}"], Int[Array, "T {k}"]]:
    """The k greatest of each row, by partial selection."""
    # XLA:CPU forgets its partial selection and sorts whole rows, 100 times slower, once it can see a slice of a top_k.
    values, columns = lax.optimization_barrier(lax.top_k(x, k))
    return values, columns


def by_blocks(x: Float[Array, "T V"], k: int) -> tuple[Float[Array, "T {k}"], Int[Array, "T {k}"]]:
    """The same for XLA:GPU, which sorts whatever it selects more than 16 from.

    The k greatest lie in the k blocks of the greatest maxima: were one outside, each of those blocks would hold a
    greater one. Kept in the order of their columns, the blocks leave equal values in theirs.
    """
    rows, width = x.shape
    if width <= 2 * k * BLOCK:
        return by_rows(x, k)
    blocks = jnp.pad(x, ((0, 0), (0, -width % BLOCK)), constant_values=-jnp.inf).reshape(rows, -1, BLOCK)
    chosen = jnp.sort(lax.top_k(jnp.max(blocks, axis=2), k)[1], axis=1)
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, k * BLOCK)
    values, places = lax.top_k(candidates, k)
    return values, jnp.take_along_axis(chosen, places // BLOCK, axis=1) * BLOCK + places % BLOCK
