"""Matrices of few bits, which products and look-ups share: what they are made of, and the numbers that they stand for.

A matrix `[O, I]` is cut along I into groups of columns that share a scale; the last one may be short. Every array has a
row for each row of the matrix, so rows of a matrix are rows of its arrays.

Codes of 4 bits lie two in a byte, 32 columns in 16 bytes: of such a block byte j holds column j in its low half and
column j + 16 in its high half. That is GGUF's order, and both halves are columns in their order: none is interleaved.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float16, Float32, Int, Int8, UInt8

AnyArray = Array | np.ndarray
"""On the device, or still on the host."""

GROUPS = (32, 64, 128)
"""Columns that may share a scale; or all of a row."""
BLOCK = 32
"""Columns that are packed together where codes have 4 bits."""

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels of NormalFloat: quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, appendix E)."""


class Int8Matrix(NamedTuple):
    """w = scale code, of -127 to 127."""

    codes: Int8[AnyArray, "O I"]
    scale: Float16[AnyArray, "O G"]


class Int4Matrix(NamedTuple):
    """w = scale code + offset; without offsets w = scale (code - 8)."""

    codes: UInt8[AnyArray, "O _"]
    scale: Float16[AnyArray, "O G"]
    offset: Float[AnyArray, "O G"] | None


class Nf4Matrix(NamedTuple):
    """w = step scale^2 NF4[code]: the scale of a group is itself stored in 8 bits, finer the smaller it is."""

    codes: UInt8[AnyArray, "O _"]
    scale: UInt8[AnyArray, "O G"]
    step: Float32[AnyArray, "O"]


QuantizedMatrix = Int8Matrix | Int4Matrix | Nf4Matrix
Matrix = Float[Array, "O I"] | QuantizedMatrix


def shape_of(matrix: Matrix) -> tuple[int, int]:
    """Rows and columns."""
    if isinstance(matrix, Int4Matrix | Nf4Matrix):
        return matrix.codes.shape[0], 2 * matrix.codes.shape[1]
    rows, columns = (matrix.codes if isinstance(matrix, Int8Matrix) else matrix).shape
    return rows, columns


def group_of(matrix: QuantizedMatrix) -> int:
    """Columns that share a scale, from the number of scales: of the sizes that there are, only one fits."""
    columns, groups = shape_of(matrix)[1], matrix.scale.shape[1]
    return columns if groups == 1 else next(size for size in GROUPS if -(-columns // size) == groups)


def dense(matrix: QuantizedMatrix) -> Float32[Array, "O I"]:
    """The numbers that a matrix stands for."""
    if isinstance(matrix, Int8Matrix):
        return _wide(matrix.codes) * _spread(scales(matrix), group_of(matrix), shape_of(matrix)[1])
    rows, columns = shape_of(matrix)
    joined = [half.reshape(rows, -1, 1, BLOCK // 2) for half in halves(matrix)]
    return jnp.concatenate(joined, axis=2).reshape(rows, columns)


def halves(matrix: Int4Matrix | Nf4Matrix) -> tuple[Float32[Array, "O _"], Float32[Array, "O _"]]:
    """The numbers of the low halves of all bytes, and those of the high halves; see `half_columns`."""
    codes, group = jnp.asarray(matrix.codes), group_of(matrix) // 2
    scale = _spread(scales(matrix), group, codes.shape[1])
    if isinstance(matrix, Nf4Matrix):
        levels = jnp.asarray(NF4, jnp.float32)
        return scale * levels[codes & 15], scale * levels[codes >> 4]
    if matrix.offset is None:
        return scale * (_wide(codes & 15) - 8), scale * (_wide(codes >> 4) - 8)
    offset = _spread(_wide(matrix.offset), group, codes.shape[1])
    return scale * _wide(codes & 15) + offset, scale * _wide(codes >> 4) + offset


def half_columns(x: Float[Array, "X I"]) -> tuple[Float[Array, "X _"], Float[Array, "X _"]]:
    """What is to be multiplied by the numbers of the low halves, and by those of the high ones."""
    blocks = x.reshape(x.shape[0], -1, 2, BLOCK // 2)
    return blocks[:, :, 0].reshape(x.shape[0], -1), blocks[:, :, 1].reshape(x.shape[0], -1)


def scales(matrix: QuantizedMatrix) -> Float32[Array, "O G"]:
    """What codes of each group are multiplied by."""
    scale = _wide(matrix.scale)
    return _wide(matrix.step)[:, None] * (scale * scale) if isinstance(matrix, Nf4Matrix) else scale


def looked_up(matrix: Matrix, rows: Int[Array, "*X"], dtype: Any) -> Float[Array, "*X I"]:
    """Some rows of a matrix, such as those of an embedding."""
    if isinstance(matrix, Array):
        return matrix[rows]
    flat = rows.reshape(-1)
    found = dense(jax.tree.map(lambda part: part[flat], matrix))
    return found.astype(dtype).reshape(*rows.shape, -1)


def _wide(part: AnyArray) -> Float32[Array, "..."]:
    return jnp.asarray(part).astype(jnp.float32)


def _spread(each: Float32[Array, "O G"], group: int, count: int) -> Float32[Array, "O _"]:
    """What each group has, for each of its codes or bytes; the last group may be short."""
    return jnp.repeat(each, group, axis=1)[:, :count]
