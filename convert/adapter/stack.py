"""The tensors of a checkpoint as an artifact holds them: stacked over layers, padded to pages, scale folded into B."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from convert.adapter.layers import Layer, Layers
from openlora_jax.adapters.artifact import Tensor
from openlora_jax.adapters.factors import F32, Stack
from openlora_jax.adapters.manifest import LowRank
from openlora_jax.adapters.modules import MODULES, ModuleShape
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.safetensors_file import SafetensorsFile


@dataclass(frozen=True, slots=True)
class Stacked:
    """The arrays of an artifact and what was learned while they were made.

    Attributes:
        modules: for the manifest.
        tensors: `MODULE.A` `[layers, pages, 16, d_in]` and `MODULE.B` `[layers, pages, 16, d_out]`.
        norms: the Frobenius norm of each module's weight delta, over all layers.
    """

    modules: dict[str, LowRank]
    tensors: dict[str, Tensor]
    norms: dict[str, float]


def stack_layers(file: SafetensorsFile, found: Layers, shapes: Mapping[str, ModuleShape], dtype: Dtype) -> Stacked:
    """Reads every layer once. Memory: the result, in float32, and one layer.

    Raises:
        BadCheckpoint: values that are not finite, or not as scaled and cast; every delta is zero; tied tensors differ.
    """
    stacked = Stacked({}, {}, {})
    problems = _tie_problems(file, found.tied) if found.tied else []
    ordered = sorted(found.layers, key=lambda layer: MODULES.index(layer.target.module))
    for module, group in groupby(ordered, key=lambda layer: layer.target.module):
        _stack_module(file, module, list(group), shapes[module], dtype, stacked, problems)
    if problems:
        raise BadCheckpoint(file.path, *problems)
    if not any(stacked.norms.values()):
        raise BadCheckpoint(file.path, "every delta is zero: lora_B is untrained, or lora_alpha is 0")
    return stacked


def _tie_problems(file: SafetensorsFile, tied: tuple[Layer, Layer]) -> list[str]:
    embedding, head = tied
    pairs = ((head.a, embedding.b), (head.b, embedding.a))
    return [
        f"tensor {mine}: is not the transpose of {theirs}, as ensure_weight_tying promises"
        for mine, theirs in pairs
        if not np.array_equal(file.read(mine), file.read(theirs).T)
    ]


def _stack_module(
    file: SafetensorsFile,
    module: str,
    layers: list[Layer],
    shape: ModuleShape,
    dtype: Dtype,
    stacked: Stacked,
    problems: list[str],
) -> None:
    stack = Stack(shape, max(layer.rank for layer in layers), dtype)
    squares = 0.0
    for layer in layers:
        a, b = _factors(file, layer)
        squares += _squared_norm(a, b)
        keys = {"A": layer.a, "B": layer.b}
        problems += [
            f"tensor {keys[side]}: holds NaN or an infinity, or too large a value as scaled {dtype}"
            for side in stack.put(layer.target.layer, a, b, layer.scale)
        ]
    stacked.modules[module] = stack.size
    stacked.norms[module] = squares**0.5
    stacked.tensors.update(stack.tensors(module))


def _factors(file: SafetensorsFile, layer: Layer) -> tuple[F32, F32]:
    """A `[rank, d_in]` and scaled B `[rank, d_out]`, in float32; both may hold what is not finite."""
    a, b = file.read(layer.a).astype(np.float32), file.read(layer.b).astype(np.float32)
    if layer.transposed:
        a, b = a.T, b.T
    with np.errstate(over="ignore", invalid="ignore"):
        return a, b.T * np.float32(layer.scale)


def _squared_norm(a: F32, b: F32) -> float:
    """The squared Frobenius norm of the delta, from two products of rank by rank: tr((A A') (B B'))."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        return max(float(np.sum((wide_a @ wide_a.T) * (wide_b @ wide_b.T))), 0.0)
