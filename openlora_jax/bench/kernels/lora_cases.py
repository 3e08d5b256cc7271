"""Cases of `lora` and `embedding_lora`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.adapters.modules import PAGE_RANK, module_shapes
from openlora_jax.bench.kernels import peers
from openlora_jax.bench.kernels.case import CALLS, FEW_CALLS, Case, Step, layers_beyond, normal, x_and_y
from openlora_jax.bench.kernels.work_lists import distinct_pages, pool_pages, work_lists
from openlora_jax.bench.kernels.workload import GROUPS, MIXES, Workload
from pallas_kernels.layers import LayerIndex, unrolled
from pallas_kernels.lora import reference
from pallas_kernels.lora.api import EmbeddingLora, Lora, PagePair, WorkList
from pallas_kernels.registry import Ops

Operands = tuple[Array, tuple[PagePair, ...], WorkList]
HeadOperands = tuple[Array, tuple[PagePair, ...], tuple[WorkList, ...]]
EmbeddingOperands = tuple[PagePair, tuple[tuple[Array, WorkList], ...]]


def lora_cases(workload: Workload, ops: Ops, cache: int, kind: str, group: str) -> Iterator[Case]:
    """One for each mix, all on the same pools; `kind` is decode or prefill."""
    tiles, tokens = workload.tiles(kind)
    shapes = [module_shapes(workload.model)[module] for module in GROUPS[group]]
    d_in, d_out, itemsize = shapes[0].d_in, sum(shape.d_out for shape in shapes), jnp.dtype(workload.dtype).itemsize
    page_elements = PAGE_RANK * (len(shapes) * d_in + d_out)
    pages = pool_pages(workload, tiles)
    layers = layers_beyond(cache, pages * page_elements * itemsize, workload.model.num_layers)
    pools = tuple(_pool(seed, (layers, pages), d_in, shape.d_out, workload) for seed, shape in enumerate(shapes))
    x, y = x_and_y((tiles, tokens), d_in, d_out, workload.dtype)
    for mix, lists, items, read in popularities(workload, tiles, len(shapes)):
        yield Case(
            op=f"lora {kind}, {group}",
            mix=mix,
            operands=tuple((x, pools, work) for work in lists),
            carry=y,
            calls=layers,
            over_layers=ops.over_layers,
            reference=_step(reference.lora),
            steps={
                ops.chosen["lora"].name: _step(ops.lora),
                "gather": _step(peers.gather_lora),
                "one-hot": _step(peers.one_hot_lora),
            },
            nbytes=itemsize * (read * page_elements + x.size + 2 * y.size),
            footprint=itemsize * layers * min(len(lists) * read, pages) * page_elements,
            operations=2 * items * tokens * page_elements,
        )


def head_lora_cases(workload: Workload, ops: Ops) -> Iterator[Case]:
    """One for each mix, in decode; each call has pages of its own, since there is but one layer."""
    tiles, tokens = workload.tiles("decode")
    shape, itemsize = module_shapes(workload.model)["lm_head"], jnp.dtype(workload.dtype).itemsize
    page_elements = PAGE_RANK * (shape.d_in + shape.d_out)
    pages = pool_pages(workload, tiles)
    pools = (_pool(0, (1, pages), shape.d_in, shape.d_out, workload),)
    x, y = x_and_y((tiles, tokens), shape.d_in, shape.d_out, workload.dtype)
    for mix, lists, items, read in popularities(workload, tiles, 1):
        yield Case(
            op="lora decode, lm_head",
            mix=mix,
            operands=((x, pools, tuple(lists[call % len(lists)] for call in range(FEW_CALLS))),),
            carry=y,
            calls=FEW_CALLS,
            over_layers=unrolled,
            reference=_head_step(reference.lora),
            steps={
                ops.chosen["lora"].name: _head_step(ops.lora),
                "gather": _head_step(peers.gather_lora),
                "one-hot": _head_step(peers.one_hot_lora),
            },
            nbytes=itemsize * (read * page_elements + x.size + 2 * y.size),
            footprint=itemsize * min(FEW_CALLS * read, pages) * page_elements,
            operations=2 * items * tokens * page_elements,
        )


def embedding_lora_cases(workload: Workload, ops: Ops) -> Iterator[Case]:
    """One for each mix, in decode; each call has tokens and pages of its own, since there is but one layer."""
    tiles, tokens = workload.tiles("decode")
    shape, itemsize = module_shapes(workload.model)["embed_tokens"], jnp.dtype(workload.dtype).itemsize
    pages = pool_pages(workload, tiles)
    pool = _pool(0, (1, pages), shape.d_in, shape.d_out, workload)
    y = normal(101, (tiles, tokens, shape.d_out), workload.dtype)
    generator = np.random.default_rng(1)
    ids = [jnp.asarray(generator.integers(0, shape.d_in, (tiles, tokens)), jnp.int32) for _ in range(CALLS)]
    for mix, lists, items, read in popularities(workload, tiles, 1):
        yield Case(
            op="embedding lora decode",
            mix=mix,
            operands=((pool, tuple((ids[call], lists[call % len(lists)]) for call in range(CALLS))),),
            carry=y,
            calls=CALLS,
            over_layers=unrolled,
            reference=_embedding_step(reference.embedding_lora),
            steps={
                ops.chosen["embedding_lora"].name: _embedding_step(ops.embedding_lora),
                "gather": _embedding_step(peers.gather_embedding_lora),
                "one-hot": _embedding_step(peers.one_hot_embedding_lora),
            },
            nbytes=itemsize * (PAGE_RANK * (items * tokens + read * shape.d_out) + 2 * y.size),
            footprint=itemsize * PAGE_RANK * (CALLS * items * tokens + min(len(lists) * read, pages) * shape.d_out),
            operations=2 * items * tokens * PAGE_RANK * shape.d_out,
        )


class Popularity(NamedTuple):
    """One popularity of adapters: the lists that calls take in turn, the items of each, and its distinct pages."""

    name: str
    lists: Sequence[WorkList]
    items: int
    read: int


def popularities(workload: Workload, tiles: int, modules: int) -> Iterator[Popularity]:
    """Those of `MIXES`, for tiles of so many modules."""
    for name, adapters_of in MIXES.items():
        adapters = adapters_of(tiles)
        items, read = sum(map(workload.pages, adapters)), distinct_pages(workload, adapters)
        yield Popularity(name, work_lists(workload, adapters, modules), items, read)


def _pool(seed: int, pages: tuple[int, int], d_in: int, d_out: int, workload: Workload) -> PagePair:
    """Random pages, whose products are about as large as what they are added to."""
    return (
        normal(2 * seed, (*pages, PAGE_RANK, d_in), workload.dtype, d_in**-0.5),
        normal(2 * seed + 1, (*pages, PAGE_RANK, d_out), workload.dtype, PAGE_RANK**-0.5),
    )


def _step(lora: Lora) -> Step:
    def step(operands: Operands, layer: LayerIndex, y: Array) -> Array:
        x, pools, work = operands
        return lora(x, y, pools, layer, work, tuple(range(len(pools))))

    return step


def _head_step(lora: Lora) -> Step:
    def step(operands: HeadOperands, layer: LayerIndex, y: Array) -> Array:
        x, pools, calls = operands
        return lora(x, y, pools, np.asarray(0, np.int32), calls[int(layer)], (0,))

    return step


def _embedding_step(embedding_lora: EmbeddingLora) -> Step:
    def step(operands: EmbeddingOperands, layer: LayerIndex, y: Array) -> Array:
        pool, calls = operands
        tokens, work = calls[int(layer)]
        return embedding_lora(tokens, y, pool, work, 0)

    return step
