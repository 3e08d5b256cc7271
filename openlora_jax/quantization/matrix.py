"""Which arrays a matrix of some format is; and what the kernels know of it, for those who know no kernels."""

from typing import Any

import jax

from openlora_jax.quantization.format import Quantization, parts
from pallas_kernels.quantized import Int4Matrix, Int8Matrix, Nf4Matrix, QuantizedMatrix, dense

__all__ = ["Int4Matrix", "Int8Matrix", "Nf4Matrix", "QuantizedMatrix", "dense", "described"]


def described(shape: tuple[int, ...], how: Quantization) -> QuantizedMatrix:
    """The shapes and types of such a matrix."""
    rows, columns = shape
    arrays: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((rows,) if name == "step" else (rows, count), dtype)
        for name, (count, dtype) in parts(columns, how).items()
    }
    if how.format == "int8":
        return Int8Matrix(**arrays)
    if how.format == "nf4":
        return Nf4Matrix(**arrays)
    return Int4Matrix(**{"offset": None, **arrays})
