"""The arrays that weights are stored as: a plain weight is one, a quantised matrix one for each of its parts."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from openlora_jax.config import Dtype
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.quantization.matrix import described
from pallas_kernels.quantized import QuantizedMatrix


def parts(name: str, value: Any) -> dict[str, Any]:
    """The arrays of a weight by name, such as `head.weight.codes`, in the order of their names."""
    if not isinstance(value, QuantizedMatrix):
        return {name: value}
    return {f"{name}.{part}": array for part, array in sorted(value._asdict().items()) if array is not None}


def joined(table: Mapping[str, Weight], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a table out of the arrays that they are stored as; a missing one raises KeyError."""
    return {name: _joined(name, weight, arrays) for name, weight in table.items()}


def _joined(name: str, weight: Weight, arrays: Mapping[str, Any]) -> Any:
    if weight.quantization is None:
        return arrays[name]
    arrays_of = described(weight.shape, weight.quantization)
    found = {part: arrays[f"{name}.{part}"] for part, array in arrays_of._asdict().items() if array is not None}
    return arrays_of._replace(**found)


def specification(weight: Weight, dtype: Dtype) -> Any:
    """The shape and type of each array of a weight; `dtype` is that of plain ones."""
    if weight.quantization is None:
        return jax.ShapeDtypeStruct(weight.shape, np.dtype(dtype))
    return described(weight.shape, weight.quantization)


def stored_arrays(table: Mapping[str, Weight], dtype: Dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of all arrays by name."""
    each = (parts(name, specification(weight, dtype)) for name, weight in table.items())
    return {name: array for arrays in each for name, array in arrays.items()}


def weight_bytes(config: ModelConfig, dtype: Dtype) -> int:
    """Bytes of all weights of a model, on disk or on a device."""
    arrays = stored_arrays(weight_table(config), dtype).values()
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def code_bytes(config: ModelConfig) -> tuple[int, ...]:
    """Bytes of the codes of each quantised matrix of a model."""
    arrays = stored_arrays(weight_table(config), "float32")
    return tuple(math.prod(array.shape) for name, array in arrays.items() if name.endswith(".codes"))
