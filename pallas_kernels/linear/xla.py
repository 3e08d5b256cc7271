"""For XLA:CPU: fast products at few rows, inside a rolled layer loop."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex

FEATURE_MAJOR_ROWS = 128
"""Up to this many rows `W @ x^T` beats `x @ W^T` on XLA:CPU, 4 times at one row; above, it loses."""
BLOCK_BYTES = 1 << 20
"""Of numbers that are made at once: what a core's cache holds beside all else."""


def linear(
    x: Float[Array, "T L I"], weights: tuple[Float[Array, "O I"], ...], layer: LayerIndex
) -> Float[Array, "T L O"]:
    """y = x W_layer^T, with one branch a layer.

    A branch reads its layer's array where it lies. Slicing one stacked array would copy it at every step, and an
    unrolled layer loop compiles each layer anew: minutes, where this compiles one.
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Array = lax.switch(layer, [lambda rows, w=weight: product(rows, w) for weight in weights], rows)
    return y.reshape(*x.shape[:-1], -1)


def product(x: Float[Array, "X I"], weight: Float[Array, "O I"]) -> Float[Array, "X O"]:
    """x W^T in the faster of two forms."""
    if x.shape[0] > FEATURE_MAJOR_ROWS:
        return x @ weight.T
    # Without the barriers XLA folds the transposes away again, and with them what is gained.
    columns = lax.optimization_barrier(x.T)
    y: Array = lax.optimization_barrier(weight @ columns)
    return y.T


def by_blocks(
    x: Float[Array, "X I"], outs: int, of_block: Callable[[Array | int, int], Float[Array, "_ X"]]
) -> Float[Array, "X O"]:
    """x W^T with W `[outs, I]` that must be made or copied first: a block of its rows at a time, which the cache holds.

    `of_block` is the product of x with a block, transposed, by its first row and its number of rows.
    """
    turns = -(-4 * outs * x.shape[1] // BLOCK_BYTES)
    block = -(-outs // turns)
    if turns == 1:
        return of_block(0, outs).T

    def put_block(index: Array, y: Float[Array, "O X"]) -> Float[Array, "O X"]:
        first = jnp.minimum(index * block, outs - block)  # the last one ends with W, and has a few rows twice
        return lax.dynamic_update_slice(y, of_block(first, block), (first, 0))

    y: Array = lax.fori_loop(0, turns, put_block, jnp.zeros((outs, x.shape[0]), x.dtype))
    return y.T
