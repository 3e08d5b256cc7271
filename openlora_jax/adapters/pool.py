"""The pool: rank pages of all resident adapters in device memory, written in place one page at a time."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Integer

from openlora_jax.adapters.host_cache import AdapterTensors, StagedPages
from openlora_jax.adapters.modules import PAGE_RANK, ModuleShape, module_shapes
from openlora_jax.adapters.pages import ZERO_PAGE, AdapterPages
from openlora_jax.model.config import ModelConfig

PoolArrays = dict[str, tuple[Array, Array]]
"""Module name -> A `[layers, pages, 16, d_in]` and B `[layers, pages, 16, d_out]`, in the order of `MODULES`."""

SOURCE_DTYPES = (jnp.float32, jnp.bfloat16)
"""What an artifact may be stored in."""


class AdapterPool:
    """Stacked rank pages of every module; `ZERO_PAGE` of each stays all zeros.

    Only the engine thread reads `arrays` and calls `write`. A write is dispatched, not awaited: the device runs it
    behind the steps dispatched before it and ahead of those after it; JAX keeps the staged pages alive until then.

    Attributes:
        arrays: what a step reads. `write` and `reset` replace it, so take it anew for every step.
    """

    def __init__(
        self, shapes: Mapping[str, ModuleShape], arrays: PoolArrays, staging: SingleDeviceSharding | None = None
    ) -> None:
        """`staging` is where pages wait for their write; None leaves them where they were read."""
        self._shapes = shapes
        self._staging = staging
        self._write = _write_page if staging is None else _write_staged_page
        self.arrays = arrays

    @classmethod
    def create(cls, config: ModelConfig, capacities: Mapping[str, int], dtype: jnp.dtype) -> "AdapterPool":
        """An empty pool of `capacities[module]` pages, the zero page included, on the default device."""
        device = jax.devices()[0]
        shapes = {module: shape for module, shape in module_shapes(config).items() if module in capacities}
        arrays = {
            module: (
                jnp.zeros((shape.layers, capacities[module], PAGE_RANK, shape.d_in), dtype, device=device),
                jnp.zeros((shape.layers, capacities[module], PAGE_RANK, shape.d_out), dtype, device=device),
            )
            for module, shape in shapes.items()
        }
        return cls(shapes, arrays, pinned_memory(device))

    @property
    def nbytes(self) -> int:
        """Device memory held, in bytes."""
        return sum(a.nbytes + b.nbytes for a, b in self.arrays.values())

    @property
    def lost(self) -> bool:
        """Whether a write that failed took the memory with it that it was to write to."""
        return any(side.is_deleted() for sides in self.arrays.values() for side in sides)

    def reset(self) -> None:
        """Empties the pool, whatever became of it, into memory of its own; the old goes first, as both may not fit."""
        for module, (a, b) in self.arrays.items():
            a.delete()
            b.delete()
            self.arrays[module] = (_zeros(a), _zeros(b))

    def compile(self) -> None:
        """Compiles every page write there is, by zeros over zeros, so that none is compiled between two steps."""
        for dtype in SOURCE_DTYPES:
            for module, shape in self._shapes.items():
                a = np.zeros((shape.layers, 1, PAGE_RANK, shape.d_in), dtype)
                b = np.zeros((shape.layers, 1, PAGE_RANK, shape.d_out), dtype)
                self.write({module: (ZERO_PAGE,)}, self.stage({module: 1}, {f"{module}.A": a, f"{module}.B": b}))

    def check(self, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Whether arrays, by name, are those of `counts[module]` pages. Raises ValueError."""
        expected = {}
        for module, count in counts.items():
            shape = self._shapes[module]
            expected[f"{module}.A"] = (shape.layers, count, PAGE_RANK, shape.d_in)
            expected[f"{module}.B"] = (shape.layers, count, PAGE_RANK, shape.d_out)
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
        """Puts page i of each array into the pool's `pages[module][i]`, whole, cast to the pool's dtype."""
        for module, ids in pages.items():
            for page, a, b in zip(ids, staged[f"{module}.A"], staged[f"{module}.B"], strict=True):
                self.arrays[module] = self._write(*self.arrays[module], np.int32(page), a, b)


def _zeros(like: Array) -> Array:
    """As large, where it is or was."""
    return jnp.zeros(like.shape, like.dtype, device=like.sharding)


def pinned_memory(device: jax.Device) -> SingleDeviceSharding | None:
    """Host memory that a device copies from by itself; None for a CPU, which has its pages at hand."""
    kinds = {memory.kind for memory in device.addressable_memories()}
    if device.platform == "cpu" or "pinned_host" not in kinds:
        return None
    return SingleDeviceSharding(device, memory_kind="pinned_host")


@partial(jax.jit, donate_argnames=("pool_a", "pool_b"))
def _write_page(
    pool_a: Float[Array, "L P R I"],
    pool_b: Float[Array, "L P R O"],
    page: Integer[Array, ""],
    a: Float[Array, "L R I"],
    b: Float[Array, "L R O"],
) -> tuple[Float[Array, "L P R I"], Float[Array, "L P R O"]]:
    """One page at a time: compiled once per module shape, whatever an adapter's rank. Donated, so in place."""
    return (
        jax.lax.dynamic_update_index_in_dim(pool_a, a.astype(pool_a.dtype), page, axis=1),
        jax.lax.dynamic_update_index_in_dim(pool_b, b.astype(pool_b.dtype), page, axis=1),
    )


@partial(jax.jit, donate_argnames=("pool_a", "pool_b"))
def _write_staged_page(
    pool_a: Float[Array, "L P R I"],
    pool_b: Float[Array, "L P R O"],
    page: Integer[Array, ""],
    a: Float[Array, "L R I"],
    b: Float[Array, "L R O"],
) -> tuple[Float[Array, "L P R I"], Float[Array, "L P R O"]]:
    """The same out of pinned memory: the copy to the device is part of the program, in order with the steps."""
    a, b = jax.device_put((a, b), jax.memory.Space.Device)
    written: tuple[Array, Array] = _write_page(pool_a, pool_b, page, a, b)
    return written
