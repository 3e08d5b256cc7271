"""The ops in XLA's plain forms, as one writes them without a kernel: what a kernel has to beat.

All accumulate in float32, and take products of float32 in full.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.affine.api import VectorPages
from pallas_kernels.int4_lora.api import Int4Pages
from pallas_kernels.int4_lora.reference import numbers
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.saved.api import NONE, SavedPages, pages_of_tiles


def gather_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """The pages of all items gathered, multiplied item by item, summed by tile. The list must be full."""

    def added(pool: PagePair, module: int) -> Float[Array, "T L O"]:
        a, b = (part[layer, jnp.asarray(work.page)[module]] for part in pool)
        return _expanded(_einsum("nli,nri->nlr", x[jnp.asarray(work.tile)[module]], a), b, work, module)

    return _joined(y, [added(pool, module) for pool, module in zip(pools, modules, strict=True)])


def one_hot_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """Every tile times every page of the pool, weighted by the tile's scale of that page: mostly zero."""

    def added(pool: PagePair, module: int) -> Float[Array, "T L O"]:
        a, b = (part[layer] for part in pool)
        return _weighted(_einsum("tli,pri->tlpr", x, a), b, work, module)

    return _joined(y, [added(pool, module) for pool, module in zip(pools, modules, strict=True)])


def gather_int4_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[Int4Pages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """The same with pages in 4 bits: those of all items become numbers in memory. The list must be full."""
    page = jnp.asarray(work.page)
    gathered = [[part[layer, page[module]][None] for part in pool] for pool, module in zip(pools, modules, strict=True)]
    in_order = jnp.broadcast_to(jnp.arange(page.shape[1], dtype=page.dtype), page.shape)
    pairs = tuple(numbers(Int4Pages(*parts)) for parts in gathered)
    return gather_lora(x, y, pairs, np.asarray(0, np.int32), work._replace(page=in_order), modules)


def gather_embedding_lora(
    tokens: Int[Array, "T L"], y: Float[Array, "T L O"], pool: PagePair, work: WorkList, module: int
) -> Float[Array, "T L O"]:
    """The items' columns and pages gathered, multiplied item by item, summed by tile. The list must be full."""
    a, b = pool
    tile, page = jnp.asarray(work.tile)[module], jnp.asarray(work.page)[module]
    columns = a[0, page[:, None], :, tokens[tile]]
    return _joined(y, [_expanded(columns.astype(jnp.float32), b[0, page], work, module)])


def one_hot_embedding_lora(
    tokens: Int[Array, "T L"], y: Float[Array, "T L O"], pool: PagePair, work: WorkList, module: int
) -> Float[Array, "T L O"]:
    """Every token's column of every page of the pool, weighted by its tile's scale of that page."""
    a, b = pool
    columns = a[0][:, :, tokens].transpose(2, 3, 0, 1)
    return _joined(y, [_weighted(columns.astype(jnp.float32), b[0], work, module)])


def every_saved_linear(
    x: Float[Array, "T L D"], y: Float[Array, "T L V"], pool: SavedPages, work: WorkList, module: int
) -> Float[Array, "T L V"]:
    """Every tile times every matrix of the pool, of which it keeps its own."""
    pages = pages_of_tiles(work, module, pool.shape[1])
    of_all = _einsum("tld,pvd->tplv", x, pool[0])
    own = jnp.take_along_axis(of_all, jnp.maximum(pages, 0)[:, None, None, None], axis=1)[:, 0]
    return jnp.where((pages == NONE)[:, None, None], y, own.astype(y.dtype))


def gather_affine(
    y: Float[Array, "T L O"],
    pools: tuple[VectorPages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """Every tile's gain and bias gathered. Each tile must have one item."""
    pages, scales = (jnp.asarray(field) for field in (work.page, work.scale))

    def vectors(which: int) -> Float[Array, "T 1 O"]:
        pairs = zip(pools, modules, strict=True)
        gathered = [(module, pool[layer, pages[module], which].astype(jnp.float32)) for pool, module in pairs]
        return jnp.concatenate([scales[module, :, None] * part for module, part in gathered], axis=1)[:, None]

    wide = y.astype(jnp.float32)
    return (wide + vectors(0) * wide + vectors(1)).astype(y.dtype)


def gather_attention(
    q: Float[Array, "T L H E"],
    kv: KvCache,
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    length: Int[Array, "T"],
) -> Float[Array, "T L H E"]:
    """Every tile's blocks gathered by its whole table, and one softmax over all of their positions."""
    tiles, tokens, heads, width = q.shape
    kv_heads = kv.values.shape[2]
    grouped = q.reshape(tiles, tokens, kv_heads, heads // kv_heads, width)
    keys, values = kv.keys[layer, table], kv.values[layer, table]
    if kv.scales is not None:
        of_keys, of_values = kv.scales[layer, table, 0], kv.scales[layer, table, 1]
        keys, values = (
            (codes.astype(jnp.float32) * scales).astype(q.dtype)
            for codes, scales in ((keys, of_keys[:, :, :, None]), (values, of_values[..., None]))
        )
    scores = _einsum("tlkge,tckes->tlkgcs", grouped, keys) / width**0.5
    key_position = jnp.arange(table.shape[1] * kv.block_tokens, dtype=jnp.int32).reshape(table.shape[1], -1)
    position = start[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None, :]
    seen = key_position[None, None] <= position[:, :, None, None]
    scores = jnp.where(seen[:, :, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=(-2, -1)).astype(q.dtype)
    # What was never written may be NaN, which times 0 is still NaN.
    written = key_position[None] < (start + length)[:, None, None]
    values = jnp.where(written[:, :, None, :, None], values, 0)
    return _einsum("tlkgcs,tckse->tlkge", weights, values).reshape(q.shape).astype(q.dtype)


def _expanded(h: Float[Array, "N L R"], b: Float[Array, "N R O"], work: WorkList, module: int) -> Array:
    """The items' h B, summed by tile."""
    scaled = h * jnp.asarray(work.scale)[module, :, None, None]
    products = _einsum("nlr,nro->nlo", scaled.astype(b.dtype), b)
    return jax.ops.segment_sum(
        products, jnp.asarray(work.tile)[module], num_segments=work.start.shape[1] - 1, indices_are_sorted=True
    )


def _weighted(h: Float[Array, "T L P R"], b: Float[Array, "P R O"], work: WorkList, module: int) -> Array:
    """h B over all pages, each weighted as the tile's items say."""
    tile, page, scale = (jnp.asarray(field)[module] for field in (work.tile, work.page, work.scale))
    weight = jnp.zeros((h.shape[0], b.shape[0]), jnp.float32).at[tile, page].add(scale)
    return _einsum("tlpr,pro->tlo", (h * weight[:, None, :, None]).astype(b.dtype), b)


def _joined(y: Float[Array, "T L O"], parts: list[Array]) -> Float[Array, "T L O"]:
    return (y.astype(jnp.float32) + jnp.concatenate(parts, axis=2)).astype(y.dtype)


def _einsum(equation: str, left: Array, right: Array) -> Array:
    summed: Array = jnp.einsum(
        equation, left, right, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return summed
