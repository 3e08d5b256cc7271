"""The pool: rank pages of all resident adapters in device memory, written in place one page at a time."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from openlora_jax.adapters.host_cache import AdapterTensors
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
    behind the steps dispatched before it and ahead of those after it; JAX keeps the host arrays alive until then.

    Attributes:
        arrays: what a step reads. `write` donates and replaces it, so take it anew for every step.
    """

    def __init__(self, shapes: Mapping[str, ModuleShape], arrays: PoolArrays) -> None:
        self._shapes = shapes
        self.arrays = arrays

    @classmethod
    def create(cls, config: ModelConfig, capacities: Mapping[str, int], dtype: jnp.dtype) -> "AdapterPool":
        """An empty pool of `capacities[module]` pages, the zero page included."""
        shapes = {module: shape for module, shape in module_shapes(config).items() if module in capacities}
        arrays = {
            module: (
                jnp.zeros((shape.layers, capacities[module], PAGE_RANK, shape.d_in), dtype),
                jnp.zeros((shape.layers, capacities[module], PAGE_RANK, shape.d_out), dtype),
            )
            for module, shape in shapes.items()
        }
        return cls(shapes, arrays)

    @property
    def nbytes(self) -> int:
        """Device memory held, in bytes."""
        return sum(a.nbytes + b.nbytes for a, b in self.arrays.values())

    def compile(self) -> None:
        """Compiles every page write there is, by zeros over zeros, so that none is compiled between two steps."""
        for dtype in SOURCE_DTYPES:
            for module, shape in self._shapes.items():
                a = np.zeros((shape.layers, 1, PAGE_RANK, shape.d_in), dtype)
                b = np.zeros((shape.layers, 1, PAGE_RANK, shape.d_out), dtype)
                self.write({module: (ZERO_PAGE,)}, {f"{module}.A": a, f"{module}.B": b})

    def stage(self, counts: Mapping[str, int], tensors: AdapterTensors) -> AdapterTensors:
        """The host's half of a write, on any thread: checks every array and lays each page out contiguously.

        The result has the shapes of `tensors`; without it `write` would gather the pages on the engine thread.

        Raises:
            ValueError: an array is missing, unknown or of another shape or dtype than this base model's pages.
        """
        expected = {}
        for module, count in counts.items():
            shape = self._shapes[module]
            expected[f"{module}.A"] = (shape.layers, count, PAGE_RANK, shape.d_in)
            expected[f"{module}.B"] = (shape.layers, count, PAGE_RANK, shape.d_out)
        if expected.keys() != tensors.keys():
            raise ValueError(f"arrays {sorted(tensors)} where {sorted(expected)} are due")
        for name, tensor in tensors.items():
            if tensor.shape != expected[name]:
                raise ValueError(f"{name} is {tensor.shape} where this base model takes {expected[name]}")
            if tensor.dtype not in SOURCE_DTYPES:
                raise ValueError(f"{name} is {tensor.dtype}; float32 and bfloat16 can be served")
        return {name: np.ascontiguousarray(tensor.swapaxes(0, 1)).swapaxes(0, 1) for name, tensor in tensors.items()}

    def write(self, pages: AdapterPages, tensors: AdapterTensors) -> None:
        """Puts page i of each array into the pool's `pages[module][i]`, whole, cast to the pool's dtype."""
        for module, ids in pages.items():
            a, b = tensors[f"{module}.A"], tensors[f"{module}.B"]
            for source, page in enumerate(ids):
                self.arrays[module] = _write_page(*self.arrays[module], np.int32(page), a[:, source], b[:, source])


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
