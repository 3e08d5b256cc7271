"""For CUDA: codes become numbers in registers, on their way to the tensor cores; the matrix itself never exists.

A program owns rows of x and rows of W and computes their part of y transposed, W x^T: what is made in registers is the
left operand, which tensor cores can take from there. Of codes of 4 bits the low halves of a block of bytes are one
product and the high halves another, whose columns of x lie 16 further on. Scales are loaded once for each group.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Float32, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.quantized import BLOCK, NF4, Int4Matrix, Int8Matrix, Nf4Matrix, QuantizedMatrix, group_of, shape_of
from pallas_kernels.quantized_linear import reference
from pallas_kernels.quantized_linear.config import MOST_ROWS, quantized_linear_config
from pallas_kernels.quantized_linear.shapes import check_quantized_linear
from pallas_kernels.triton_call import dot, triton_call

Ref = Any
HALF = BLOCK // 2


def linear(
    x: Float[Array, "T L I"], weights: tuple[QuantizedMatrix, ...], layer: LayerIndex, *, interpret: bool = False
) -> Float[Array, "T L O"]:
    """y = x W_layer^T; W's numbers are rounded to the dtype of x. Where x has many rows, XLA makes them and multiplies.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] > MOST_ROWS:
        return reference.linear(x, weights, layer)
    if isinstance(layer, np.ndarray):
        y = _product(rows, weights[int(layer)], interpret)
    else:
        y = lax.switch(layer, [lambda rows, w=weight: _product(rows, w, interpret) for weight in weights], rows)
    return y.reshape(*x.shape[:-1], -1)


def _product(x: Float[Array, "X I"], weight: QuantizedMatrix, interpret: bool) -> Float[Array, "X O"]:
    check_quantized_linear(x, weight)
    outs, columns = shape_of(weight)
    config = quantized_linear_config(x.shape[0], outs, looked_up=isinstance(weight, Nf4Matrix))

    def quantized_linear_kernel(x_ref: Ref, *refs: Ref) -> None:
        *parts, y_ref = refs
        row = pl.program_id(0) * config.rows + jnp.arange(config.rows, dtype=jnp.int32)
        out = pl.program_id(1) * config.outs + jnp.arange(config.outs, dtype=jnp.int32)
        row_inside, out_inside = row < x_ref.shape[0], out < outs

        def add_block(turn: Array, sums: Float32[Array, "O X"]) -> Float32[Array, "O X"]:
            block = _Block(weight, parts, out, out_inside, turn * config.block, config.block)
            scale, offset = _scale(block), _offset(block)
            for column, codes in _codes(block):
                mask = row_inside[:, None] & (column < columns)[None, :]
                x = plgpu.load(x_ref.at[row[:, None], column[None, :]], mask=mask, other=0)
                if scale.ndim == 2 or config.rows >= config.block:
                    sums += dot(_scaled(codes, scale, offset).astype(x.dtype), x.T)
                    continue
                # Of one group there is less to scale behind the product than in front of it.
                sums += scale[:, None] * dot(codes.astype(x.dtype), x.T)
                if offset is not None:
                    sums += offset[:, None] * jnp.sum(x.astype(jnp.float32), axis=1)[None, :]
            return sums

        turns = pl.cdiv(weight.codes.shape[1], config.block)
        zeros = jnp.zeros((config.outs, config.rows), jnp.float32)
        sums = lax.fori_loop(jnp.int32(0), jnp.int32(turns), add_block, zeros)
        if isinstance(weight, Nf4Matrix):
            sums *= plgpu.load(parts[2].at[out], mask=out_inside, other=0.0)[:, None]
        mask = out_inside[:, None] & row_inside[None, :]
        plgpu.store(y_ref.at[row[None, :], out[:, None]], sums.astype(y_ref.dtype), mask=mask)

    operands = [part for part in weight if part is not None]
    if isinstance(weight, Nf4Matrix):
        operands.append(jnp.asarray(NF4, jnp.float32))
    call = triton_call(
        quantized_linear_kernel,
        ShapeDtypeStruct((x.shape[0], outs), x.dtype),
        grid=(pl.cdiv(x.shape[0], config.rows), pl.cdiv(outs, config.outs)),
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )
    y: Array = call(x, *operands)
    return y


class _Block(NamedTuple):
    """Some bytes of some rows of W; `parts` are references to its arrays, and last the levels where it is nf4."""

    weight: QuantizedMatrix
    parts: list[Ref]
    out: Int[Array, "O"]
    out_inside: Bool[Array, "O"]
    first: Int[Array, ""]
    bytes_taken: int


def _codes(block: _Block) -> Iterator[tuple[Int[Array, "W"], Float32[Array, "O W"]]]:
    """What is to be scaled, and the columns that it is of. Past the last byte it is finite, and means nothing."""
    byte = block.first + jnp.arange(block.bytes_taken, dtype=jnp.int32)
    codes = _load(block, 0, byte)
    if isinstance(block.weight, Int8Matrix):
        yield byte, codes.astype(jnp.float32)
        return
    low = byte + HALF * lax.div(byte, jnp.int32(HALF))
    for column, half in ((low, codes & 15), (low + HALF, codes >> 4)):
        if isinstance(block.weight, Nf4Matrix):
            yield column, plgpu.load(block.parts[-1].at[half.astype(jnp.int32)])
        else:
            yield column, half.astype(jnp.float32) - (8 if block.weight.offset is None else 0)


def _scale(block: _Block) -> Float32[Array, "O *G"]:
    """But for what nf4 has once a row."""
    scale = _per_group(block, 1)
    return scale * scale if isinstance(block.weight, Nf4Matrix) else scale


def _offset(block: _Block) -> Float32[Array, "O *G"] | None:
    offsets = isinstance(block.weight, Int4Matrix) and block.weight.offset is not None
    return _per_group(block, 2) if offsets else None


def _per_group(block: _Block, part: int) -> Float32[Array, "O *G"]:
    """One number a row; and of each group, where the bytes are of several.

    Codes of 4 bits are packed within their group, so that it is a run of bytes there too.
    """
    size = group_of(block.weight) * block.weight.codes.shape[1] // shape_of(block.weight)[1]
    group = lax.div(block.first, jnp.int32(size))
    if block.parts[part].shape[1] > 1 and block.bytes_taken > size:
        group += jnp.arange(block.bytes_taken // size, dtype=jnp.int32)
        return _load(block, part, group).astype(jnp.float32)
    each = plgpu.load(block.parts[part].at[block.out, group], mask=block.out_inside, other=0)
    return each.astype(jnp.float32)


def _scaled(
    codes: Float32[Array, "O W"], scale: Float32[Array, "O *G"], offset: Float32[Array, "O *G"] | None
) -> Float32[Array, "O W"]:
    """What codes stand for."""

    def spread(each: Float32[Array, "O *G"]) -> Float32[Array, "O _"]:
        if each.ndim == 1:
            return each[:, None]
        shape = (*each.shape, codes.shape[1] // each.shape[1])
        return jnp.broadcast_to(each[:, :, None], shape).reshape(codes.shape)

    numbers = spread(scale) * codes
    return numbers if offset is None else numbers + spread(offset)


def _load(block: _Block, part: int, column: Int[Array, "W"]) -> Array:
    mask = block.out_inside[:, None] & (column < block.parts[part].shape[1])[None, :]
    loaded: Array = plgpu.load(block.parts[part].at[block.out[:, None], column[None, :]], mask=mask, other=0)
    return loaded
