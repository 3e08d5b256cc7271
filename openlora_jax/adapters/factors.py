"""The factors of a module, layer by layer: out of an artifact's pages, and into them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openlora_jax.adapters.artifact import DTYPES, Tensor, Tensors
from openlora_jax.adapters.manifest import LowRank, Manifest, Origin, VectorKind
from openlora_jax.adapters.modules import PAGE_RANK, ModuleShape
from openlora_jax.config import Dtype

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Factors:
    """One module of one layer; its delta is B'A.

    Attributes:
        a: `[rank, d_in]`.
        b: `[rank, d_out]`, with the scale in it.
        scale: what was folded into B, None where it was not recorded.
    """

    a: F32
    b: F32
    scale: float | None


def layer_factors(manifest: Manifest, tensors: Tensors, module: str, layer: int) -> Factors | None:
    """What an adapter has for one module of one layer, in float32; None if it does not target it."""
    size = manifest.modules.get(module)
    if size is None:
        return None
    a, b = (tensors[f"{module}.{side}"][layer].reshape(size.pages * PAGE_RANK, -1) for side in "AB")
    rank = size.origin.ranks[layer] if size.origin else size.rank * bool(a.any() or b.any())
    if rank == 0:
        return None
    scale = size.origin.scales[layer] if size.origin else None
    return Factors(a[:rank].astype(np.float32), b[:rank].astype(np.float32), scale)


def layer_vectors(manifest: Manifest, tensors: Tensors, module: str, layer: int) -> tuple[F32, F32]:
    """What an adapter makes of the output y of one module of one layer: y + gain y + bias, `[d_out]` each."""
    size = manifest.modules[module]
    if size.vector is None:
        return np.zeros(size.d_out, np.float32), np.zeros(size.d_out, np.float32)
    gain, bias = tensors[f"{module}.vector"][layer, 0].astype(np.float32)
    return gain, bias


@dataclass(slots=True)
class Stack:
    """One module of an artifact that is being made; layers that are not put are not targeted.

    Attributes:
        rank: the largest that any layer will have.
        vector: what it has a vector page for, if it has one.
        a: `[layers, pages * 16, d_in]`.
        b: `[layers, pages * 16, d_out]`.
        vectors: `[layers, 1, 2, d_out]`, gain and bias.
    """

    shape: ModuleShape
    rank: int
    dtype: Dtype
    vector: VectorKind | None = None
    a: Tensor = field(init=False)
    b: Tensor = field(init=False)
    vectors: Tensor = field(init=False)
    _ranks: list[int] = field(init=False)
    _scales: list[float] = field(init=False)

    def __post_init__(self) -> None:
        layers, ranks = self.shape.layers, -(-self.rank // PAGE_RANK) * PAGE_RANK
        self.a = np.zeros((layers, ranks, self.shape.d_in), DTYPES[self.dtype])
        self.b = np.zeros((layers, ranks, self.shape.d_out), DTYPES[self.dtype])
        self.vectors = np.zeros((layers, 1, 2, self.shape.d_out), DTYPES[self.dtype])
        self._ranks, self._scales = [0] * layers, [0.0] * layers

    def put(self, layer: int, a: F32, b: F32, scale: float) -> list[str]:
        """Puts `[rank, d_in]` and `[rank, d_out]`, the latter with its scale in it.

        Returns:
            "A" and "B" as far as they are not finite as stored.
        """
        self._ranks[layer], self._scales[layer] = len(a), scale
        with np.errstate(over="ignore", invalid="ignore"):
            self.a[layer, : len(a)] = a.astype(self.a.dtype)
            self.b[layer, : len(b)] = b.astype(self.b.dtype)
        stored = {"A": self.a[layer], "B": self.b[layer]}
        return [side for side, values in stored.items() if not np.isfinite(values.astype(np.float32)).all()]

    def put_vectors(self, layer: int, gain: F32, bias: F32) -> bool:
        """Puts two of `[d_out]`; whether they are finite as stored."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.vectors[layer, 0] = np.stack([gain, bias]).astype(self.vectors.dtype)
        return bool(np.isfinite(self.vectors[layer].astype(np.float32)).all())

    @property
    def size(self) -> LowRank:
        """For the manifest."""
        origin = Origin(ranks=self._ranks, scales=self._scales)
        shape = self.shape
        return LowRank(
            layers=shape.layers,
            d_in=shape.d_in,
            d_out=shape.d_out,
            rank=self.rank,
            vector=self.vector,
            origin=origin,
        )

    def tensors(self, module: str) -> dict[str, Tensor]:
        """For the artifact."""
        pages = self.a.shape[1] // PAGE_RANK
        factors = {
            f"{module}.{side}": values.reshape(self.shape.layers, pages, PAGE_RANK, -1)
            for side, values in (("A", self.a), ("B", self.b))
        }
        return factors | ({f"{module}.vector": self.vectors} if self.vector else {})
