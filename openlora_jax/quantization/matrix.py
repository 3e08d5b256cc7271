"""Which arrays a matrix of some format is; and what the kernels know of it, for those who know no kernels."""

from typing import Any

import jax

from openlora_jax.quantization.format import Quantization
from pallas_kernels.quantized import BLOCK, Int4Matrix, Int8Matrix, Nf4Matrix, QuantizedMatrix, dense

__all__ = ["Int4Matrix", "Int8Matrix", "Nf4Matrix", "QuantizedMatrix", "dense", "described", "problem"]


def problem(shape: tuple[int, ...], how: Quantization) -> str | None:
    """Why a matrix of this shape cannot be stored so; None if it can."""
    if how.format != "int8" and shape[1] % BLOCK:
        return f"{shape[1]} columns are not a multiple of the {BLOCK} that {how.format} packs together"
    return None


def described(shape: tuple[int, ...], how: Quantization) -> QuantizedMatrix:
    """The shapes and types of such a matrix."""
    rows, columns = shape
    groups = -(-columns // how.group) if how.group else 1

    def array(dtype: str, *dims: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *dims), dtype)

    if how.format == "int8":
        return Int8Matrix(array("int8", columns), array("float16", groups))
    codes = array("uint8", columns // 2)
    if how.format == "nf4":
        return Nf4Matrix(codes, array("uint8", groups), array("float32"))
    return Int4Matrix(codes, array("float16", groups), array(how.offsets, groups) if how.offsets else None)
