"""For CUDA: one launch adds all items of all tiles to the outputs of modules that share an input; see `item_loop`."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.lora.config import Pass, lora_config
from pallas_kernels.lora.item_loop import (
    Listed,
    PageKind,
    Ranks,
    Share,
    add_items,
    added,
    clear_share,
    grouped,
    over_columns,
    share_of,
    some_columns,
    spans_of,
)
from pallas_kernels.lora.shapes import check_embedding_lora, check_lora
from pallas_kernels.triton_call import dot

Ref = Any


def lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
    *,
    interpret: bool = False,
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    Written over y, or apart and added by XLA (`LoraConfig.apart`); pages are read where they lie. Summed in float32 for
    up to 256 ranks of a tile; a mix of more rounds the sum after each 256. What x A^T times the scale comes to is
    rounded to the dtype of x. An item whose page is not in the pool adds nothing.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    check_lora(x, y, pools, layer, work, modules)
    tiles, tokens, width_in = x.shape
    widths = tuple(b.shape[3] for _, b in pools)
    config = lora_config(tiles, tokens, width_in, widths, x.dtype.itemsize)
    kernel = grouped("lora_kernel", config, widths, tokens, modules, PageKind(_shrink, _expand, arrays=1), interpret)
    # The layer is data, not part of the kernel: so all layers of a model are one kernel, compiled once.
    operands = (jnp.full((1,), layer, jnp.int32), work.start, work.page, work.scale, x, *jax.tree.leaves(pools))
    return added(kernel, config, spans_of(config, widths), operands, y, interpret)


def embedding_lora(
    tokens: Int[Array, "T L"],
    y: Float[Array, "T L O"],
    pool: PagePair,
    work: WorkList,
    module: int,
    *,
    interpret: bool = False,
) -> Float[Array, "T L O"]:
    """The same with one-hot rows: h[l, q] is column tokens[l] of A. A token outside the vocabulary adds nothing.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    check_embedding_lora(tokens, y, pool, work, module)
    width = y.shape[2]
    config = lora_config(tokens.shape[0], tokens.shape[1], width, (width,), y.dtype.itemsize)

    def embedding_lora_kernel(
        start_ref: Ref, page_ref: Ref, scale_ref: Ref, tokens_ref: Ref, a_ref: Ref, b_ref: Ref, *y_refs: Ref
    ) -> None:
        y_ref = y_refs[-1]
        share = share_of(config, tokens.shape[1], 0, pl.program_id(1), width)
        listed = Listed(start_ref, page_ref, scale_ref, module, share.tile, b_ref.shape[1])
        shrink = functools.partial(_look_up, tokens_ref, a_ref, share)
        expand = functools.partial(_expand, b_ref, y_ref, 0, share)
        clear = functools.partial(clear_share, y_ref, share, config.passes[-1].block) if config.apart else None
        add_items(listed, config.passes, shrink, expand, clear, interpret)

    operands = (work.start, work.page, work.scale, tokens, *pool)
    return added(embedding_lora_kernel, config, pl.cdiv(width, config.span), operands, y, interpret)


def _shrink(x_ref: Ref, a_ref: Ref, layer: Array, share: Share, ranks: Ranks, step: Pass) -> Float[Array, "L Q"]:
    """H = x A^T, in `step.sums` sums that do not wait for one another."""
    width, stretch = x_ref.shape[2], step.block // step.sums

    def add_block(turn: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        added = []
        for place, h in enumerate(sums):
            column, inside = some_columns(turn * step.block + place * stretch, stretch, width)
            x = plgpu.load(x_ref.at[share.tile, share.rows[:, None], column[None, :]], mask=inside, other=0)
            added.append(h + dot(x, _load_pages(a_ref, layer, ranks, column, inside).T))
        return tuple(added)

    zeros = jnp.zeros((share.rows.shape[0], ranks.page.shape[0]), jnp.float32)
    turns = pl.cdiv(width, step.block)
    sums = lax.fori_loop(jnp.int32(0), jnp.int32(turns), add_block, (zeros,) * step.sums)
    h: Array = functools.reduce(operator.add, sums)
    return h


def _look_up(tokens_ref: Ref, a_ref: Ref, share: Share, ranks: Ranks, step: Pass) -> Float[Array, "L Q"]:
    """H = A's columns of the tokens."""
    token = plgpu.load(tokens_ref.at[share.tile, share.rows])
    known = (token >= 0) & (token < a_ref.shape[3])
    columns = a_ref.at[0, ranks.page[None, :], ranks.rank[None, :], token[:, None]]
    return plgpu.load(columns, mask=ranks.live[None, :] & known[:, None], other=0).astype(jnp.float32)


def _expand(
    b_ref: Ref,
    y_ref: Ref,
    layer: Array | int,
    share: Share,
    h: Float[Array, "L Q"],
    ranks: Ranks,
    step: Pass,
    written: Array | bool,
) -> None:
    """Y += h B, in the program's share of y; Y = h B as long as nothing is written there."""
    h = h.astype(b_ref.dtype)

    def add_block(turn: Array, _: None) -> None:
        column, inside = some_columns(share.first + turn * step.block, step.block, share.end)
        place = y_ref.at[share.tile, share.rows[:, None], share.column + column[None, :]]
        y = plgpu.load(place, mask=inside & written, other=0)
        added = y.astype(jnp.float32) + dot(h, _load_pages(b_ref, layer, ranks, column, inside))
        plgpu.store(place, added.astype(y.dtype), mask=inside)

    over_columns(share, step.block, add_block)


def _load_pages(
    ref: Ref, layer: Array | int, ranks: Ranks, column: Int[Array, "I"], inside: Bool[Array, "1 I"]
) -> Float[Array, "Q I"]:
    """Columns of a pass' pages. Past the end they are masked, not clamped: a clamped one would be some other column."""
    place = ref.at[layer, ranks.page[:, None], ranks.rank[:, None], column[None, :]]
    loaded: Array = plgpu.load(place, mask=ranks.live[:, None] & inside, other=0)
    return loaded
