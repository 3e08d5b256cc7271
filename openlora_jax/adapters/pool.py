"""The pool: the pages of all resident adapters in device memory, written in place one page at a time."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Integer

from openlora_jax.adapters.host_cache import AdapterTensors, StagedPages
from openlora_jax.adapters.modules import PageShape, page_shapes
from openlora_jax.adapters.pages import ZERO_PAGE, AdapterPages
from openlora_jax.model.config import ModelConfig

PoolArrays = dict[str, tuple[Array, ...]]
"""Pool -> the parts of its pages, each `[layers, pages, rows, width]`, in the order of `POOLS`; see `PageShape`."""

SOURCE_DTYPES = (jnp.float32, jnp.bfloat16)
"""What an artifact may be stored in."""


class AdapterPool:
    """Stacked pages, module by module and kind by kind; `ZERO_PAGE` of each stays all zeros.

    Only the engine thread reads `arrays` and calls `write`. A write is dispatched, not awaited: the device runs it
    behind the steps dispatched before it and ahead of those after it; JAX keeps the staged pages alive until then.

    Attributes:
        arrays: what a step reads. `write` and `reset` replace it, so take it anew for every step.
    """

    def __init__(
        self, shapes: Mapping[str, PageShape], arrays: PoolArrays, staging: SingleDeviceSharding | None = None
    ) -> None:
        """`staging` is where pages wait for their write; None leaves them where they were read."""
        self._shapes = shapes
        self._staging = staging
        self._write = _write_page if staging is None else _write_staged_page
        self.arrays = arrays

    @classmethod
    def create(cls, config: ModelConfig, capacities: Mapping[str, int], dtype: jnp.dtype) -> "AdapterPool":
        """An empty pool of `capacities[pool]` pages, the zero page included, on the default device.

        A pool that is not named does not exist, and no step has any work for it.
        """
        device = jax.devices()[0]
        shapes = {pool: shape for pool, shape in page_shapes(config).items() if pool in capacities}
        arrays = {
            pool: tuple(
                jnp.zeros((shape.layers, capacities[pool], *each), dtype, device=device)
                for each in shape.parts.values()
            )
            for pool, shape in shapes.items()
        }
        return cls(shapes, arrays, pinned_memory(device))

    @property
    def nbytes(self) -> int:
        """Device memory held, in bytes."""
        return sum(part.nbytes for parts in self.arrays.values() for part in parts)

    @property
    def lost(self) -> bool:
        """Whether a write that failed took the memory with it that it was to write to."""
        return any(part.is_deleted() for parts in self.arrays.values() for part in parts)

    def reset(self) -> None:
        """Empties the pool, whatever became of it, into memory of its own; the old goes first, as both may not fit."""
        for pool, parts in self.arrays.items():
            for part in parts:
                part.delete()
            self.arrays[pool] = tuple(map(_zeros, parts))

    def compile(self) -> None:
        """Compiles every page write there is, by zeros over zeros, so that none is compiled between two steps."""
        for dtype in SOURCE_DTYPES:
            for pool, shape in self._shapes.items():
                zeros = {name: np.zeros((shape.layers, 1, *each), dtype) for name, each in shape.parts.items()}
                self.write({pool: (ZERO_PAGE,)}, self.stage({pool: 1}, zeros))

    def check(self, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Whether arrays, by name, are those of `counts[pool]` pages. Raises ValueError."""
        expected = {
            name: (self._shapes[pool].layers, count, *each)
            for pool, count in counts.items()
            for name, each in self._shapes[pool].parts.items()
        }
        if expected.keys() != shapes.keys():
            raise ValueError(f"arrays {sorted(shapes)} where {sorted(expected)} are due")
        for name, found in shapes.items():
            if found != expected[name]:
                raise ValueError(f"{name} is {found} where this base model takes {expected[name]}")

    def stage(self, counts: Mapping[str, int], tensors: AdapterTensors) -> StagedPages:
        """The host's half of a write, on any thread: checks every array and lays each page out in one piece.

        On a device with memory of its own the pages lie in pinned memory, from which it copies them by itself; out of
        ordinary memory the engine thread would have to.

        Raises:
            ValueError: an array is missing, unknown or of another shape or dtype than this base model's pages.
        """
        self.check(counts, {name: tensor.shape for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            if tensor.dtype not in SOURCE_DTYPES:
                raise ValueError(f"{name} is {tensor.dtype}; float32 and bfloat16 can be served")
        staged = {
            name: [np.ascontiguousarray(tensor[:, page]) for page in range(tensor.shape[1])]
            for name, tensor in tensors.items()
        }
        return staged if self._staging is None else jax.block_until_ready(jax.device_put(staged, self._staging))

    def write(self, pages: AdapterPages, staged: StagedPages) -> None:
        """Puts page i of each array into the pool's `pages[pool][i]`, whole, cast to the pool's dtype."""
        for pool, ids in pages.items():
            parts = [staged[name] for name in self._shapes[pool].parts]
            for page, *new in zip(ids, *parts, strict=True):
                self.arrays[pool] = self._write(self.arrays[pool], np.int32(page), tuple(new))


def _zeros(like: Array) -> Array:
    """As large, where it is or was."""
    return jnp.zeros(like.shape, like.dtype, device=like.sharding)


def pinned_memory(device: jax.Device) -> SingleDeviceSharding | None:
    """Host memory that a device copies from by itself; None for a CPU, which has its pages at hand."""
    kinds = {memory.kind for memory in device.addressable_memories()}
    if device.platform == "cpu" or "pinned_host" not in kinds:
        return None
    return SingleDeviceSharding(device, memory_kind="pinned_host")


@partial(jax.jit, donate_argnames="pool")
def _write_page(
    pool: tuple[Float[Array, "Y P _ _"], ...], page: Integer[Array, ""], new: tuple[Float[Array, "Y _ _"], ...]
) -> tuple[Float[Array, "Y P _ _"], ...]:
    """One page at a time: compiled once per module shape, whatever an adapter's rank. Donated, so in place."""
    return tuple(
        jax.lax.dynamic_update_index_in_dim(part, each.astype(part.dtype), page, axis=1)
        for part, each in zip(pool, new, strict=True)
    )


@partial(jax.jit, donate_argnames="pool")
def _write_staged_page(
    pool: tuple[Float[Array, "Y P _ _"], ...], page: Integer[Array, ""], new: tuple[Float[Array, "Y _ _"], ...]
) -> tuple[Float[Array, "Y P _ _"], ...]:
    """The same out of pinned memory: the copy to the device is part of the program, in order with the steps."""
    written: tuple[Array, ...] = _write_page(pool, page, jax.device_put(new, jax.memory.Space.Device))
    return written
