"""For XLA:CPU: one row is summed code by code, more are multiplied by numbers that are made a block at a time.

Reading less is worth nothing if numbers go to memory in between. What XLA fuses are slices, conversions and sums of
equal shape, never a product. So the product with one row is written as such sums, 16 columns side by side, which read
each code once. For more rows that would convert each code again and again; instead a block of the matrix is made in the
cache and multiplied there. Both slice the layers' stacked arrays where they lie: a branch a layer would take minutes
to compile.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32

from pallas_kernels.layers import LayerIndex
from pallas_kernels.linear.xla import by_blocks, product
from pallas_kernels.quantized import (
    BLOCK,
    Int4Matrix,
    Int8Matrix,
    QuantizedMatrix,
    dense,
    group_of,
    half_columns,
    halves,
)
from pallas_kernels.quantized_linear.layers import stacked

LANES = BLOCK // 2


def linear(x: Float[Array, "T L I"], weights: tuple[QuantizedMatrix, ...], layer: LayerIndex) -> Float[Array, "T L O"]:
    """y = x W_layer^T; as `stacked` arranges the weights, or stacked anew, which copies them."""
    stack = weights[0] if weights[0].codes.ndim == 3 else stacked(weights)[0]
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    if rows.shape[0] == 1 and rows.shape[1] % BLOCK == 0 and isinstance(stack, Int8Matrix | Int4Matrix):
        y = _by_lanes(rows[0], stack, layer)[None]
    else:  # of nf4 too: its levels are looked up one by one, which costs what sums of one row save
        y = _by_blocks(rows, stack, layer)
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


def _by_lanes(x: Float32[Array, "I"], stack: Int8Matrix | Int4Matrix, layer: LayerIndex) -> Float32[Array, "O"]:
    outs, group = stack.codes.shape[1], group_of(_layer(stack, 0, 0, 1))

    def column(part: Any, first: int, count: int) -> Array:
        sliced: Array = lax.dynamic_slice(part, (layer, 0, first), (1, outs, count))
        return sliced.reshape(outs, count)

    sums = jnp.zeros((outs, LANES), jnp.float32)
    for index, first in enumerate(range(0, len(x), group)):
        of_codes, of_x = jnp.zeros((outs, LANES), jnp.float32), jnp.zeros(LANES, jnp.float32)
        for start in range(first, min(first + group, len(x)), BLOCK):
            low, high = x[start : start + LANES], x[start + LANES : start + BLOCK]
            if isinstance(stack, Int8Matrix):
                codes = column(stack.codes, start, LANES), column(stack.codes, start + LANES, LANES)
            else:
                both = column(stack.codes, start // 2, LANES)
                codes = both & 15, both >> 4
            of_codes += codes[0].astype(jnp.float32) * low[None, :] + codes[1].astype(jnp.float32) * high[None, :]
            of_x += low + high
        scale = column(stack.scale, index, 1).astype(jnp.float32)
        if isinstance(stack, Int8Matrix):
            sums += scale * of_codes
        elif stack.offset is None:
            sums += scale * (of_codes - 8 * of_x[None, :])
        else:
            sums += scale * of_codes + column(stack.offset, index, 1).astype(jnp.float32) * of_x[None, :]
    # Fused with the sum over lanes, XLA would compute all of the above one lane at a time.
    return jnp.sum(lax.optimization_barrier(sums), axis=1)


def _by_blocks(x: Float32[Array, "X I"], stack: QuantizedMatrix, layer: LayerIndex) -> Float32[Array, "X O"]:
    def of_block(first: Array | int, count: int) -> Float32[Array, "O X"]:
        matrix = _layer(stack, layer, first, count)
        if isinstance(matrix, Int8Matrix):
            return product(x, lax.optimization_barrier(dense(matrix))).T
        pairs = zip(half_columns(x), lax.optimization_barrier(halves(matrix)), strict=True)
        low, high = (product(columns, numbers).T for columns, numbers in pairs)
        return low + high

    return by_blocks(x, stack.codes.shape[1], of_block)


def _layer(stack: QuantizedMatrix, layer: LayerIndex | int, first: Array | int, rows: int) -> QuantizedMatrix:
    """Some rows of a layer's matrix."""

    def cut(part: Array) -> Array:
        start = (layer, first, *[0] * (part.ndim - 2))
        return lax.dynamic_slice(part, start, (1, rows, *part.shape[2:])).reshape(rows, *part.shape[2:])

    found: QuantizedMatrix = jax.tree.map(cut, stack)
    return found
