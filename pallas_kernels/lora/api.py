"""The work list, and what every implementation of the op promises."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
from jax import Array
from jaxtyping import Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class WorkList:
    """One module's LoRA work of a step: (page, scale) items sorted by tile.

    These hold: `start` ascends from 0; `start[T] <= N`; `tile[n]` is the t with `start[t] <= n < start[t + 1]`;
    entries of the other fields from `start[T]` on are never read; every page lies in its pool.

    Attributes:
        start: where each tile's items begin.
        tile: each item's tile.
        page: each item's rank page.
        scale: what each item's product is multiplied by: the adapter's weight in the tile's mix.
    """

    start: Int[Array, "F"]
    tile: Int[Array, "N"]
    page: Int[Array, "N"]
    scale: Float[Array, "N"]


@runtime_checkable
class Lora(Protocol):
    """y[t] += sum over items n of tile t, in list order: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    Accumulated in float32. A tile without items is returned as it came.
    """

    def __call__(
        self,
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        a: Float[Array, "Y P R I"],
        b: Float[Array, "Y P R O"],
        layer: Int[Array, ""],
        work: WorkList,
    ) -> Float[Array, "T L O"]: ...


@runtime_checkable
class EmbeddingLora(Protocol):
    """The same for an embedding: x[t] is one-hot, given as token ids; A's columns are looked up."""

    def __call__(
        self,
        tokens: Int[Array, "T L"],
        y: Float[Array, "T L O"],
        a: Float[Array, "1 P R V"],
        b: Float[Array, "1 P R O"],
        work: WorkList,
    ) -> Float[Array, "T L O"]: ...
