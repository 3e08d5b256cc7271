"""For CUDA: one launch adds all items of all tiles to the outputs of the modules that share an input.

A program owns rows of one tile and a span of one module's columns, so nothing is summed by two and no order depends on
timing. It takes the tile's items in passes of n pages, which lie anywhere in the pool and are gathered into one operand
of Q = 16 n ranks. A pass is two products:

    h[L, Q]  = x[L, I] A[Q, I]^T * scale[Q]      summed over blocks of I
    y[L, O] += h[L, Q] B[Q, O]                   for each block of O in the span

Decode, L = 1, is the same code: tensor cores pad its one row, which is cheaper than sums on plain cores.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.lora.config import LoraConfig, Pass, lora_config
from pallas_kernels.lora.shapes import PAGE_RANKS, check_embedding_lora, check_lora
from pallas_kernels.triton_call import dot, triton_call

Ref = Any


class _Listed(NamedTuple):
    """A tile's part of one module's list; `pages` is how many its pool has."""

    start: Ref
    page: Ref
    scale: Ref
    module: int
    tile: Array
    pages: int


class Ranks(NamedTuple):
    """Those of one pass, page by page. For one that is not live nothing is read, and its scale is 0."""

    page: Int[Array, "Q"]
    rank: Int[Array, "Q"]
    live: Bool[Array, "Q"]
    scale: Float[Array, "Q"]


class Share(NamedTuple):
    """What a program owns of y: rows of a tile, columns `first` to `end` of a module that itself begins at `column`."""

    tile: Array
    rows: Int[Array, "L"]
    column: int
    first: Array
    end: Array


class PageKind(NamedTuple):
    """What a kind of pages does in the kernel; `arrays` hold A, and as many B."""

    shrink: Callable[..., Array]
    expand: Callable[..., None]
    arrays: int


Shrink = Callable[[Ranks, Pass], Float[Array, "L Q"]]
Expand = Callable[[Float[Array, "L Q"], Ranks, Pass, Array | bool], None]


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


def grouped(
    name: str,
    config: LoraConfig,
    widths: tuple[int, ...],
    tokens: int,
    modules: tuple[int, ...],
    pages: PageKind,
    interpret: bool,
) -> Callable[..., None]:
    """The kernel of the modules that share an input."""
    spans = [pl.cdiv(width, config.span) for width in widths]

    def kernel(layer_ref: Ref, start_ref: Ref, page_ref: Ref, scale_ref: Ref, x_ref: Ref, *refs: Ref) -> None:
        layer, y_ref = layer_ref[0], refs[-1]
        for place, module in enumerate(modules):
            pool = refs[2 * pages.arrays * place :]
            span = pl.program_id(1) - sum(spans[:place])
            share = _share(config, tokens, sum(widths[:place]), span, widths[place])
            listed = _Listed(start_ref, page_ref, scale_ref, module, share.tile, pool[0].shape[1])
            of_a = functools.partial(pages.shrink, x_ref, *pool[: pages.arrays], layer, share)
            of_b = functools.partial(pages.expand, *pool[pages.arrays : 2 * pages.arrays], y_ref, layer, share)
            clear = functools.partial(_clear, y_ref, share, config.passes[-1].block) if config.apart else None
            add = functools.partial(_add_items, listed, config.passes, of_a, of_b, clear, interpret)
            pl.when((span >= 0) & (span < spans[place]))(add)

    kernel.__name__ = name
    return kernel


def spans_of(config: LoraConfig, widths: tuple[int, ...]) -> int:
    """Programs that share a tile's columns."""
    return sum(pl.cdiv(width, config.span) for width in widths)


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
        share = _share(config, tokens.shape[1], 0, pl.program_id(1), width)
        listed = _Listed(start_ref, page_ref, scale_ref, module, share.tile, b_ref.shape[1])
        shrink = functools.partial(_look_up, tokens_ref, a_ref, share)
        expand = functools.partial(_expand, b_ref, y_ref, 0, share)
        clear = functools.partial(_clear, y_ref, share, config.passes[-1].block) if config.apart else None
        _add_items(listed, config.passes, shrink, expand, clear, interpret)

    operands = (work.start, work.page, work.scale, tokens, *pool)
    return added(embedding_lora_kernel, config, pl.cdiv(width, config.span), operands, y, interpret)


def added(
    kernel: Callable[..., None],
    config: LoraConfig,
    spans: int,
    operands: tuple[Any, ...],
    y: Float[Array, "T L O"],
    interpret: bool,
) -> Float[Array, "T L O"]:
    """The launch: the kernel gets the operands, y where it adds onto it, and last what it writes to."""
    launch = functools.partial(
        triton_call,
        kernel,
        grid=(y.shape[0] * y.shape[1] // config.rows, spans),
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )
    shape = ShapeDtypeStruct(y.shape, y.dtype)
    result: Array
    if config.apart:
        result = y + launch(shape)(*operands)
    else:
        result = launch(shape, input_output_aliases={len(operands): 0})(*operands, y)
    return result


def _share(config: LoraConfig, tokens: int, column: int, span: Array, width: int) -> Share:
    owner, shares = pl.program_id(0), jnp.int32(tokens // config.rows)
    rows = lax.rem(owner, shares) * config.rows + jnp.arange(config.rows, dtype=jnp.int32)
    first = span * config.span
    return Share(lax.div(owner, shares), rows, column, first, jnp.minimum(first + config.span, width))


def _add_items(
    listed: _Listed,
    passes: tuple[Pass, ...],
    shrink: Shrink,
    expand: Expand,
    clear: Callable[[], None] | None,
    interpret: bool,
) -> None:
    """All items of the tile: of each width as many passes as leave what a narrower one holds.

    With `clear`, y holds nothing before: the first pass writes it, and `clear` does so where there is none.
    """
    first = item = jnp.maximum(listed.start[listed.module, listed.tile], 0)
    end = jnp.minimum(listed.start[listed.module, listed.tile + 1], listed.page.shape[1])
    if clear is not None:
        pl.when(first >= end)(clear)
    for step, narrower in zip(passes, (*(step.pages for step in passes[1:]), 0), strict=True):
        turns = lax.div(jnp.maximum(end - item - narrower, 0) + (step.pages - 1), jnp.int32(step.pages))

        def add_pass(turn: Array, _: None, step: Pass = step, item: Array = item, later: Array = item > first) -> None:
            ranks = _load_ranks(listed, item + turn * step.pages, end, step.pages)
            written = True if clear is None else (turn > 0) | later
            expand(shrink(ranks, step) * ranks.scale[None, :], ranks, step, written)
            if not interpret:  # what one thread has stored, another one may load in the next pass
                plgpu.debug_barrier()

        lax.fori_loop(jnp.int32(0), turns, add_pass, None)
        item += turns * step.pages


def _load_ranks(listed: _Listed, item: Array, end: Array, pages: int) -> Ranks:
    rank = jnp.arange(pages * PAGE_RANKS, dtype=jnp.int32)
    items = item + lax.div(rank, jnp.int32(PAGE_RANKS))
    page = plgpu.load(listed.page.at[listed.module, items], mask=items < end, other=0)
    scale = plgpu.load(listed.scale.at[listed.module, items], mask=items < end, other=0.0)
    live = (items < end) & (page >= 0) & (page < listed.pages)
    return Ranks(page, lax.rem(rank, jnp.int32(PAGE_RANKS)), live, jnp.where(live, scale, 0.0))


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


def _clear(y_ref: Ref, share: Share, block: int) -> None:
    """Y = 0, in the program's share of y."""

    def clear_block(turn: Array, _: None) -> None:
        column, inside = some_columns(share.first + turn * block, block, share.end)
        place = y_ref.at[share.tile, share.rows[:, None], share.column + column[None, :]]
        plgpu.store(place, jnp.zeros((share.rows.shape[0], block), y_ref.dtype), mask=inside)

    over_columns(share, block, clear_block)


def over_columns(share: Share, block: int, body: Callable[[Array, None], None]) -> None:
    turns = lax.div(share.end - share.first + (block - 1), jnp.int32(block))
    lax.fori_loop(jnp.int32(0), turns, body, None)


def some_columns(first: Array, count: int, end: Array | int) -> tuple[Int[Array, "I"], Bool[Array, "1 I"]]:
    """`count` columns from `first`, and which come before `end`; compared so that no register is needed for each."""
    nth = jnp.arange(count, dtype=jnp.int32)
    return first + nth, (nth < end - first)[None, :]


def _load_pages(
    ref: Ref, layer: Array | int, ranks: Ranks, column: Int[Array, "I"], inside: Bool[Array, "1 I"]
) -> Float[Array, "Q I"]:
    """Columns of a pass' pages. Past the end they are masked, not clamped: a clamped one would be some other column."""
    place = ref.at[layer, ranks.page[:, None], ranks.rank[:, None], column[None, :]]
    loaded: Array = plgpu.load(place, mask=ranks.live[:, None] & inside, other=0)
    return loaded
