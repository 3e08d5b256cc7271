"""Numbers put into a format: each group by itself, without calibration, rounded to the nearest code."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openlora_jax.quantization.format import Quantization
from pallas_kernels.quantized import BLOCK, NF4, Int4Matrix, Int8Matrix, Nf4Matrix, QuantizedMatrix

F32: TypeAlias = NDArray[np.float32]
LEVELS = np.array(NF4, np.float32)
EDGES = (LEVELS[1:] + LEVELS[:-1]) / 2
MOST = 255
"""The greatest scale of a group of nf4."""


def quantize(values: F32, how: Quantization) -> QuantizedMatrix:
    """A matrix, or some rows of one, in a format. Where a scale does not fit its type, it is not finite.

    Args:
        values: `[rows, columns]`, of which `how.problem` has nothing to say.
        how: the format.
    """
    columns = values.shape[1]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        grouped = _grouped(values, how.group or columns)
        if how.format == "int8":
            return _int8(grouped, columns)
        if how.format == "nf4":
            return _nf4(grouped, columns)
        if how.offsets is None:
            return _int4_symmetric(grouped, columns)
        return _int4_with_offsets(grouped, columns, np.dtype(how.offsets))


def packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of 4 bits, `[rows, columns]`, two in a byte."""
    blocks = codes.reshape(len(codes), -1, 2, BLOCK // 2)
    halves: NDArray[np.uint8] = blocks[:, :, 0] | blocks[:, :, 1] << np.uint8(4)
    return halves.reshape(len(codes), -1)


def _grouped(values: F32, group: int) -> F32:
    """`[rows, groups, columns]`; a short group is filled with its last column, which changes no least or greatest."""
    short = -values.shape[1] % group
    filled = np.pad(values, ((0, 0), (0, short)), mode="edge") if short else values
    return filled.reshape(len(values), -1, group)


def _int8(values: F32, columns: int) -> Int8Matrix:
    scale = (np.abs(values).max(axis=2) / 127).astype(np.float16)
    return Int8Matrix(_codes(values, scale, -127, 127, columns).astype(np.int8), scale)


def _int4_symmetric(values: F32, columns: int) -> Int4Matrix:
    """The scale's sign is such that the number furthest from zero is the one code that has no opposite, 0 for -8."""
    furthest = np.take_along_axis(values, np.abs(values).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    scale = (furthest / -8).astype(np.float16)
    return Int4Matrix(packed((_codes(values, scale, -8, 7, columns) + 8).astype(np.uint8)), scale, None)


def _int4_with_offsets(values: F32, columns: int, dtype: np.dtype[Any]) -> Int4Matrix:
    offset = values.min(axis=2).astype(dtype)
    above = values - offset.astype(np.float32)[:, :, None]
    scale = (above.max(axis=2) / 15).astype(np.float16)
    return Int4Matrix(packed(_codes(above, scale, 0, 15, columns).astype(np.uint8)), scale, offset)


def _nf4(values: F32, columns: int) -> Nf4Matrix:
    furthest = np.abs(values).max(axis=2)
    step = (furthest.max(axis=1) / MOST**2).astype(np.float32)
    scale = np.nan_to_num(np.rint(np.sqrt(furthest / step[:, None]))).clip(0, MOST)
    exact = np.where(np.isfinite(step)[:, None], step[:, None] * scale * scale, np.float32(np.nan))
    codes = np.searchsorted(EDGES, _divided(values, exact).reshape(-1)).astype(np.uint8)
    return Nf4Matrix(packed(codes.reshape(len(values), -1)[:, :columns]), scale.astype(np.uint8), step)


def _codes(values: F32, scale: NDArray[Any], least: int, most: int, columns: int) -> F32:
    rounded = np.rint(_divided(values, scale.astype(np.float32))).clip(least, most)
    return rounded.reshape(len(values), -1)[:, :columns]


def _divided(values: F32, scale: F32) -> F32:
    """By each group's scale; zero where that is zero or not finite."""
    usable = (scale != 0) & np.isfinite(scale)
    return np.where(usable[:, :, None], values / scale[:, :, None], np.float32(0))
