"""The pool: the pages of all resident adapters in device memory, written in place one page at a time."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Float16, Integer, Shaped, UInt16

from openlora_jax.adapters.artifact import Tensor
from openlora_jax.adapters.few_bits import Pages, gathered, numbers, shape_of
from openlora_jax.adapters.host_cache import AdapterTensors, StagedPages
from openlora_jax.adapters.modules import PageShape, page_shapes
from openlora_jax.adapters.pages import ZERO_PAGE, AdapterPages
from openlora_jax.model.config import ModelConfig
from openlora_jax.quantization.format import Quantization, parts
from openlora_jax.quantization.matrix import Int4Matrix, QuantizedMatrix
from pallas_kernels.int4_lora.api import packed_words

PoolArrays = dict[str, tuple[Array, ...]]
"""Pool -> the parts of its pages, each `[layers, pages, rows, width]`, in the order of `POOLS`; see `PageShape`."""

SOURCE_DTYPES = (jnp.float32, jnp.bfloat16)
"""What an artifact may be stored in, beside few bits."""


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
        self._compiled: set[Any] = set()
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
                jnp.zeros((shape.layers, capacities[pool], *each), of, device=device)
                for each, of in _held(shape, dtype)
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
        for pool, held in self.arrays.items():
            for part in held:
                part.delete()
            self.arrays[pool] = tuple(map(_zeros, held))

    def compile(self) -> None:
        """Compiles every page write there is, by zeros over zeros, so that none is compiled between two steps."""
        for pool, shape in self._shapes.items():
            for zeros in _zero_pages(shape):
                self.write({pool: (ZERO_PAGE,)}, self.stage({pool: 1}, zeros))
            if self._staging is not None and not shape.int4:  # as numbers are that were made on the device
                made = tuple(
                    jnp.zeros((part.shape[0], *part.shape[2:]), part.dtype, device=part.sharding)
                    for part in self.arrays[pool]
                )
                self.arrays[pool] = _write_page(self.arrays[pool], np.int32(ZERO_PAGE), made)

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

        What has few bits keeps them. The program that makes numbers of them is compiled here, at the first of a kind,
        so that the engine thread need not.

        Raises:
            ValueError: an array is missing, unknown or of another shape or dtype than this base model's pages.
        """
        whole = gathered(tensors)
        shapes = {name: shape_of(tensor) for name, tensor in whole.items()}
        self.check(counts, shapes)
        for name, tensor in whole.items():
            if isinstance(tensor, np.ndarray) and tensor.dtype not in SOURCE_DTYPES:
                raise ValueError(f"{name} is {tensor.dtype}; float32 and bfloat16 can be served")
        staged = {name: [_page(tensor, page) for page in range(shapes[name][1])] for name, tensor in whole.items()}
        if self._staging is not None:
            staged = jax.block_until_ready(jax.device_put(staged, self._staging))
        for pool in counts:
            page = [staged[name][0] for name in self._shapes[pool].parts]
            kind = (self._shapes[pool].int4, *((part.shape, str(part.dtype)) for part in jax.tree.leaves(page)))
            if _any_few_bits(page) and kind not in self._compiled:
                jax.block_until_ready(self._made(pool, page))
                self._compiled.add(kind)
        return staged

    def write(self, pages: AdapterPages, staged: StagedPages) -> None:
        """Puts page i of each tensor into the pool's `pages[pool][i]`, whole, as numbers of the pool's dtype."""
        for pool, ids in pages.items():
            tensors = [staged[name] for name in self._shapes[pool].parts]
            for page, *new in zip(ids, *tensors, strict=True):
                if _any_few_bits(new):
                    self.arrays[pool] = _write_page(self.arrays[pool], np.int32(page), self._made(pool, new))
                else:
                    self.arrays[pool] = self._write(self.arrays[pool], np.int32(page), tuple(new))

    def _made(self, pool: str, page: Sequence[Any]) -> tuple[Array, ...]:
        """A page as the pool holds it, of one that is not stored so: on the device."""
        pinned = self._staging is not None
        if self._shapes[pool].int4:
            return tuple(jax.tree.leaves([_words(part, pinned) for part in page]))
        return tuple(_numbers(part, self.arrays[pool][0].dtype, pinned) for part in page)


def _zero_pages(shape: PageShape) -> list[dict[str, Tensor]]:
    """A page of zeros as an artifact has one, in every type that it may be stored in."""
    if shape.int4:
        how = Quantization(format="int4", group=32)
        arrays = {
            f"{name}.{part}": np.zeros((shape.layers, 1, rows, count), dtype)
            for name, (rows, width) in shape.parts.items()
            for part, (count, dtype) in parts(width, how).items()
        }
        return [arrays]
    return [
        {name: np.zeros((shape.layers, 1, *each), dtype) for name, each in shape.parts.items()}
        for dtype in SOURCE_DTYPES
    ]


def _held(shape: PageShape, dtype: jnp.dtype) -> list[tuple[tuple[int, int], jnp.dtype]]:
    """The arrays that hold a pool's pages: (rows, width) of each layer, and the type."""
    if not shape.int4:
        return [(each, dtype) for each in shape.parts.values()]
    arrays = []
    for rows, width in shape.parts.values():
        arrays += [((rows, width // 4), jnp.dtype("uint16")), ((rows, width // 32), jnp.dtype("float16"))]
    return arrays


def _page(tensor: Pages, page: int) -> Any:
    """One page of a tensor, in one piece."""
    return jax.tree.map(lambda part: np.ascontiguousarray(part[:, page]), tensor)


def _any_few_bits(page: Sequence[Any]) -> bool:
    return any(isinstance(part, QuantizedMatrix) for part in page)


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
    pool: tuple[Shaped[Array, "Y P _ _"], ...], page: Integer[Array, ""], new: tuple[Shaped[Array, "Y _ _"], ...]
) -> tuple[Shaped[Array, "Y P _ _"], ...]:
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


@partial(jax.jit, static_argnames=("dtype", "pinned"))
def _numbers(page: Any, dtype: jnp.dtype, pinned: bool) -> Float[Array, "Y _ _"]:
    """Of a tensor's page. Apart from the write, so that it is one program for all modules of a width."""
    if pinned:  # few bits are copied, and become numbers there
        page = jax.device_put(page, jax.memory.Space.Device)
    wide = numbers(page) if isinstance(page, QuantizedMatrix) else page
    return jnp.asarray(wide).astype(dtype)


@partial(jax.jit, static_argnames="pinned")
def _words(page: Int4Matrix, pinned: bool) -> tuple[UInt16[Array, "Y _ _"], Float16[Array, "Y _ _"]]:
    """A tensor's page as one of 4 bits."""
    codes, scale, _ = jax.device_put(page, jax.memory.Space.Device) if pinned else page
    return packed_words(jnp.asarray(codes)), jnp.asarray(scale)
