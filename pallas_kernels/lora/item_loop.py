"""What every kernel of rank pages has in common: a program goes through its tile's items, some pages at a time.

A program owns rows of one tile and a span of one module's columns, so nothing is summed by two and no order depends on
timing. It takes the tile's items in passes of n pages, which lie anywhere in the pool and are gathered into one operand
of Q = 16 n ranks. A pass is two products, of which a kind of pages says how its numbers are loaded:

    h[L, Q]  = x[L, I] A[Q, I]^T * scale[Q]      summed over blocks of I
    y[L, O] += h[L, Q] B[Q, O]                   for each block of O in the span

Decode, L = 1, is the same code: tensor cores pad its one row, which is cheaper than sums on plain cores.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Int

from pallas_kernels.lora.config import LoraConfig, Pass
from pallas_kernels.lora.shapes import PAGE_RANKS
from pallas_kernels.triton_call import triton_call

Ref = Any


class Listed(NamedTuple):
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
            share = share_of(config, tokens, sum(widths[:place]), span, widths[place])
            listed = Listed(start_ref, page_ref, scale_ref, module, share.tile, pool[0].shape[1])
            of_a = functools.partial(pages.shrink, x_ref, *pool[: pages.arrays], layer, share)
            of_b = functools.partial(pages.expand, *pool[pages.arrays : 2 * pages.arrays], y_ref, layer, share)
            clear = functools.partial(clear_share, y_ref, share, config.passes[-1].block) if config.apart else None
            add = functools.partial(add_items, listed, config.passes, of_a, of_b, clear, interpret)
            pl.when((span >= 0) & (span < spans[place]))(add)

    kernel.__name__ = name
    return kernel


def spans_of(config: LoraConfig, widths: tuple[int, ...]) -> int:
    """Programs that share a tile's columns."""
    return sum(pl.cdiv(width, config.span) for width in widths)


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


def share_of(config: LoraConfig, tokens: int, column: int, span: Array, width: int) -> Share:
    owner, shares = pl.program_id(0), jnp.int32(tokens // config.rows)
    rows = lax.rem(owner, shares) * config.rows + jnp.arange(config.rows, dtype=jnp.int32)
    first = span * config.span
    return Share(lax.div(owner, shares), rows, column, first, jnp.minimum(first + config.span, width))


def add_items(
    listed: Listed,
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


def _load_ranks(listed: Listed, item: Array, end: Array, pages: int) -> Ranks:
    rank = jnp.arange(pages * PAGE_RANKS, dtype=jnp.int32)
    items = item + lax.div(rank, jnp.int32(PAGE_RANKS))
    page = plgpu.load(listed.page.at[listed.module, items], mask=items < end, other=0)
    scale = plgpu.load(listed.scale.at[listed.module, items], mask=items < end, other=0.0)
    live = (items < end) & (page >= 0) & (page < listed.pages)
    return Ranks(page, lax.rem(rank, jnp.int32(PAGE_RANKS)), live, jnp.where(live, scale, 0.0))


def clear_share(y_ref: Ref, share: Share, block: int) -> None:
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
