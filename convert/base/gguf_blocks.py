"""GGUF's blocks of few bits as matrices of ours, code by code: where the formats are the same, no number changes.

The blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Callable, Mapping

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import Int4Matrix, Int8Matrix, QuantizedMatrix

Bytes = NDArray[np.uint8]
"""Rows as they are in the file."""
Unpack = Callable[[Bytes], QuantizedMatrix]


def as_stored(kind: GGMLQuantizationType, how: Quantization) -> Unpack | None:
    """What makes rows of a format out of GGUF's rows of a type without rounding; None if there is nothing."""
    return UNPACK.get((kind, how))


def _q4_0(raw: Bytes) -> Int4Matrix:
    scale, codes = _blocks(raw, 2, 16)
    return Int4Matrix(_joined(codes), _numbers(scale), None)


def _q4_0_with_offsets(raw: Bytes) -> Int4Matrix:
    codes, scale, _ = _q4_0(raw)
    with np.errstate(over="ignore"):
        return Int4Matrix(codes, scale, -8 * scale)


def _q4_1(raw: Bytes) -> Int4Matrix:
    scale, offset, codes = _blocks(raw, 2, 2, 16)
    return Int4Matrix(_joined(codes), _numbers(scale), _numbers(offset))


def _q8_0(raw: Bytes) -> Int8Matrix:
    scale, codes = _blocks(raw, 2, 32)
    return Int8Matrix(_joined(codes).view(np.int8), _numbers(scale))


def _blocks(raw: Bytes, *sizes: int) -> list[Bytes]:
    """The parts of each block, `[rows, blocks, bytes]`."""
    return np.split(raw.reshape(len(raw), -1, sum(sizes)), np.cumsum(sizes)[:-1], axis=2)


def _joined(codes: Bytes) -> Bytes:
    return codes.reshape(len(codes), -1)


def _numbers(part: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(part).view("<f2")[:, :, 0]


SYMMETRIC = Quantization(format="int4", group=32)
WITH_OFFSETS = Quantization(format="int4", group=32, offsets="float16")
UNPACK: Mapping[tuple[GGMLQuantizationType, Quantization], Unpack] = {
    (GGMLQuantizationType.Q4_0, SYMMETRIC): _q4_0,
    (GGMLQuantizationType.Q4_0, WITH_OFFSETS): _q4_0_with_offsets,
    (GGMLQuantizationType.Q4_1, WITH_OFFSETS): _q4_1,
    (GGMLQuantizationType.Q8_0, Quantization(format="int8", group=32)): _q8_0,
}
"""Their packing of codes is the same as ours."""
