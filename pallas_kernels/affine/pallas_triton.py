"""For CUDA: one launch changes, in place, what the modules that share an input have computed for tiles with items.

A program owns rows of one tile and some columns of one module. It holds them while it takes the tile's items in turn;
without items it does nothing. A loop of XLA's over the list would have the host ask the device for its length.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Float

from pallas_kernels.affine.api import VectorPages
from pallas_kernels.affine.shapes import check_affine
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.triton_call import triton_call

Ref = Any

ROWS, COLUMNS = 16, 2048
"""What a program holds at most of y; with one row, fewer columns would be little beside the list."""
NUMBERS = 8192
"""The most of both together: 64 a thread."""


class _Listed(NamedTuple):
    """One module's part of the list."""

    start: Ref
    page: Ref
    scale: Ref
    module: int


class _Share(NamedTuple):
    """What a program owns of y: `rows`, and `columns` of a module that itself begins at `column`."""

    owner: Array
    span: Array
    column: int
    rows: int
    columns: int


def affine(
    y: Float[Array, "T L O"],
    pools: tuple[VectorPages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
    *,
    interpret: bool = False,
) -> Float[Array, "T L O"]:
    """y[t] += scale[n] (gain[layer, page[n]] y[t] + bias[layer, page[n]]) for each item n of tile t, in list order.

    An item whose page is not in the pool changes nothing.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    check_affine(y, pools, layer, work, modules)
    widths = [pool.shape[3] for pool in pools]
    rows = min(y.shape[1], ROWS)
    columns = min(COLUMNS, NUMBERS // rows)
    spans = [pl.cdiv(width, columns) for width in widths]

    def affine_kernel(layer_ref: Ref, start_ref: Ref, page_ref: Ref, scale_ref: Ref, *refs: Ref) -> None:
        owner = pl.program_id(0)
        for place, module in enumerate(modules):
            span = pl.program_id(1) - sum(spans[:place])
            listed = _Listed(start_ref, page_ref, scale_ref, module)
            share = _Share(owner, span, sum(widths[:place]), rows, columns)
            part = functools.partial(_change, listed, refs[place], layer_ref[0], refs[-1], share)
            pl.when((span >= 0) & (span < spans[place]))(part)

    call = triton_call(
        affine_kernel,
        ShapeDtypeStruct(y.shape, y.dtype),
        grid=(y.shape[0] * y.shape[1] // rows, sum(spans)),
        warps=4,
        stages=2,
        input_output_aliases={4 + len(pools): 0},
        interpret=interpret,
    )
    # The layer is data, not part of the kernel: so all layers of a model are one kernel, compiled once.
    changed: Array = call(jnp.full((1,), layer, jnp.int32), work.start, work.page, work.scale, *pools, y)
    return changed


def _change(listed: _Listed, pool_ref: Ref, layer: Array, y_ref: Ref, share: _Share) -> None:
    """One module's part of a program."""
    (pages, width), tokens = (pool_ref.shape[1], pool_ref.shape[3]), y_ref.shape[1]
    shares = jnp.int32(tokens // share.rows)
    tile = lax.div(share.owner, shares)
    row = lax.rem(share.owner, shares) * share.rows + jnp.arange(share.rows, dtype=jnp.int32)
    inner = share.span * share.columns + jnp.arange(share.columns, dtype=jnp.int32)
    inside = inner < width
    first = jnp.maximum(listed.start[listed.module, tile], 0)
    end = jnp.minimum(listed.start[listed.module, tile + 1], listed.page.shape[1])

    def change() -> None:
        place = y_ref.at[tile, row[:, None], share.column + inner[None, :]]
        y = plgpu.load(place, mask=inside[None, :], other=0)

        def apply_item(n: Array, y: Array) -> Array:
            page = listed.page[listed.module, n]
            known = (page >= 0) & (page < pages)
            scale = jnp.where(known, listed.scale[listed.module, n], 0.0)
            gain, bias = (
                plgpu.load(pool_ref.at[layer, page, vector, inner], mask=inside & known, other=0).astype(jnp.float32)
                for vector in range(2)
            )
            return y + scale * (gain[None, :] * y + bias[None, :])

        changed = lax.fori_loop(first, end, apply_item, y.astype(jnp.float32))
        plgpu.store(place, changed.astype(y.dtype), mask=inside[None, :])

    pl.when(first < end)(change)
