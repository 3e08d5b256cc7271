"""The tensors of a checkpoint as an artifact holds them: stacked over layers, padded to pages, scale and gain in B."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from convert.adapter.base_weights import BaseWeights
from convert.adapter.initial import Initial
from convert.adapter.layers import Layer, Layers
from convert.adapter.token_rows import TokenRows
from convert.adapter.vectors import Vectors, dora_vectors
from openlora_jax.adapters.artifact import DTYPES, Tensor
from openlora_jax.adapters.factors import F32, Stack
from openlora_jax.adapters.manifest import LowRank, SavedModule
from openlora_jax.adapters.modules import MODULES, ModuleShape, Saveable
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint, InvalidRequest
from openlora_jax.safetensors_file import SafetensorsFile


@dataclass(frozen=True, slots=True)
class Stacked:
    """The arrays of an artifact and what was learned while they were made.

    Attributes:
        modules: for the manifest.
        tensors: as the manifest states them.
        norms: the Frobenius norm of each module's weight delta, over all layers.
        saved: for the manifest, too.
    """

    modules: dict[str, LowRank]
    tensors: dict[str, Tensor]
    norms: dict[str, float]
    saved: dict[Saveable, SavedModule] = field(default_factory=dict)

    @property
    def vectors(self) -> list[str]:
        """The modules with a vector page."""
        return [module for module, size in self.modules.items() if size.vector]


def stack_layers(
    file: SafetensorsFile,
    found: Layers,
    shapes: Mapping[str, ModuleShape],
    dtype: Dtype,
    base: BaseWeights | None = None,
    initial: Initial | None = None,
) -> Stacked:
    """Reads every layer once. Memory: the result, in float32, and one layer.

    Args:
        file: the checkpoint.
        found: what is in it.
        shapes: of the base's modules.
        dtype: of the result.
        base: whose weights are read for DoRA and for trained token rows.
        initial: what the adapter was before training, where the difference to that counts.

    Raises:
        BadCheckpoint: values that are not finite, or not as scaled and cast; nothing changes; tied tensors differ.
        InvalidRequest: either without a base.
    """
    stacker = _Stacker(file, dtype, base, initial)
    stacker.problems += _tie_problems(file, found.tied) if found.tied else []
    ordered = sorted(found.layers, key=lambda layer: MODULES.index(layer.target.module))
    for module, group in groupby(ordered, key=lambda layer: layer.target.module):
        stacker.add(module, shapes[module], list(group))
    for rows in found.rows:
        stacker.add_rows(rows, shapes[rows.module])
    for saveable, keys in found.saved.items():
        stacker.add_saved(saveable, keys)
    if stacker.problems:
        raise BadCheckpoint(file.path, *stacker.problems)
    stacked = stacker.stacked
    changes = any(stacked.norms.values()) or any(stacked.tensors[f"{each}.vector"].any() for each in stacked.vectors)
    if not changes and not stacked.saved:
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


_NOT_FINITE = {
    "bias": "holds NaN or an infinity, or too large a value as scaled",
    "gain": "makes a gain that is not finite: it is not, or a row of the weight and its delta is zero",
}


@dataclass(slots=True)
class _Stacker:
    """Takes module after module; may be given what is not finite, and notes that."""

    file: SafetensorsFile
    dtype: Dtype
    base: BaseWeights | None
    initial: Initial | None
    stacked: Stacked = field(default_factory=lambda: Stacked({}, {}, {}))
    problems: list[str] = field(default_factory=list)

    def add(self, module: str, shape: ModuleShape, layers: list[Layer]) -> None:
        kind = layers[0].vector
        rank = max(layer.rank for layer in layers)
        stack = Stack(shape, 2 * rank if self.initial else rank, self.dtype, kind)
        squares = 0.0
        for layer in layers:
            a, b = self._factors(layer)
            if kind:
                vectors = self._vectors(layer, a, b)
                with np.errstate(over="ignore", invalid="ignore"):
                    b = b * (vectors.gain + 1)
                if not stack.put_vectors(layer.target.layer, *vectors):
                    self.problems.append(f"tensor {layer.magnitude or layer.bias}: {_NOT_FINITE[kind]}")
            squares += _squared_norm(a, b)
            keys = {"A": layer.a, "B": layer.b}
            self.problems += [
                f"tensor {keys[side]}: holds NaN or an infinity, or too large a value as scaled {self.dtype}"
                for side in stack.put(layer.target.layer, a, b, layer.scale)
            ]
        self.stacked.modules[module] = stack.size
        self.stacked.norms[module] = squares**0.5
        self.stacked.tensors.update(stack.tensors(module))

    def add_rows(self, rows: TokenRows, shape: ModuleShape) -> None:
        if self.base is None:
            raise _without_base("trained token rows are deltas of")
        a, b = rows.factors(self._read(rows.key), self.base.product(rows.module, 0))
        stack = Stack(shape, len(a), self.dtype)
        if stack.put(0, a, b, 1.0):
            self.problems.append(f"tensor {rows.key}: holds NaN or an infinity, or too large a value as {self.dtype}")
        self.stacked.modules[rows.module] = stack.size
        self.stacked.norms[rows.module] = _squared_norm(a, b) ** 0.5
        self.stacked.tensors.update(stack.tensors(rows.module))

    def add_saved(self, module: Saveable, keys: Sequence[str]) -> None:
        """One of a tied base may have the other's tensor; where there are two, they are equal."""
        read = self.file.read(keys[0])
        self.problems += [
            f"tensor {key}: is not equal to {keys[0]}, as ensure_weight_tying promises"
            for key in keys[1:]
            if not np.array_equal(self.file.read(key), read)
        ]
        with np.errstate(over="ignore", invalid="ignore"):
            stored = read.astype(DTYPES[self.dtype])
        if not np.isfinite(stored).all():
            self.problems.append(f"tensor {keys[0]}: holds NaN or an infinity, or too large a value as {self.dtype}")
        self.stacked.saved[module] = SavedModule(rows=stored.shape[0], width=stored.shape[1])
        self.stacked.tensors[f"{module}.saved"] = stored[None, None]

    def _factors(self, layer: Layer) -> tuple[F32, F32]:
        """A `[rank, d_in]` and scaled B `[rank, d_out]`, in float32."""
        a, b = _factors(self.file, layer)
        if self.initial is None:
            return a, b
        a0, b0 = _factors(self.initial.file, self.initial.layers[layer.target])
        with np.errstate(over="ignore", invalid="ignore"):
            return np.concatenate([a, a - a0]), np.concatenate([b - b0, b0])

    def _vectors(self, layer: Layer, a: F32, b: F32) -> Vectors:
        """Those of a layer that has any."""
        if layer.bias:
            with np.errstate(over="ignore", invalid="ignore"):
                bias = self._read(layer.bias) * np.float32(layer.scale)
            return Vectors(np.zeros_like(bias), bias)
        if layer.magnitude is None or self.base is None:
            raise _without_base("DoRA's gains are relative to")
        module, index = layer.target.module, layer.target.layer
        weight = self.base.delta_like(module, index)
        return dora_vectors(self._read(layer.magnitude), weight, self.base.bias(module, index), a, b)

    def _read(self, key: str) -> F32:
        return self.file.read(key).astype(np.float32)


def _factors(file: SafetensorsFile, layer: Layer) -> tuple[F32, F32]:
    a, b = file.read(layer.a).astype(np.float32), file.read(layer.b).astype(np.float32)
    if layer.transposed:
        a, b = a.T, b.T
    with np.errstate(over="ignore", invalid="ignore"):
        return a, b.T * np.float32(layer.scale)


def _without_base(why: str) -> InvalidRequest:
    return InvalidRequest("--base", f"{why} the weights of the base; give its directory")


def _squared_norm(a: F32, b: F32) -> float:
    """The squared Frobenius norm of the delta, from two products of rank by rank: tr((A A') (B B'))."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        return max(float(np.sum((wide_a @ wide_a.T) * (wide_b @ wide_b.T))), 0.0)
