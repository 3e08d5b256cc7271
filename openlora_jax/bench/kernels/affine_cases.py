"""Cases of `affine`."""

from collections.abc import Iterator
from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from openlora_jax.adapters.modules import PAGE_RANK, module_shapes
from openlora_jax.bench.kernels import peers
from openlora_jax.bench.kernels.case import Case, Step, layers_beyond, normal
from openlora_jax.bench.kernels.work_lists import distinct_pages, pool_pages, work_lists
from openlora_jax.bench.kernels.workload import GROUPS, MIXES, Workload
from pallas_kernels.affine import reference
from pallas_kernels.affine.api import Affine, VectorPages
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.registry import Ops

Operands = tuple[tuple[VectorPages, ...], WorkList]


def affine_cases(workload: Workload, ops: Ops, cache: int, kind: str, group: str) -> Iterator[Case]:
    """One for each mix, all on the same pools; `kind` is decode or prefill. An adapter has one page."""
    workload = replace(workload, ranks=(PAGE_RANK,))
    tiles, tokens = workload.tiles(kind)
    widths = [module_shapes(workload.model)[module].d_out for module in GROUPS[group]]
    pages, itemsize = pool_pages(workload, tiles), jnp.dtype(workload.dtype).itemsize
    page_bytes = itemsize * 2 * sum(widths)
    layers = layers_beyond(cache, pages * page_bytes, workload.model.num_layers)
    # Gains below zero, so that y stays as large as it is, however often it is changed.
    pools = tuple(normal(seed, (layers, pages, 2, width), workload.dtype, 0.05) for seed, width in enumerate(widths))
    pools = tuple(pool.at[:, :, 0].add(-0.5) for pool in pools)
    y = normal(101, (tiles, tokens, sum(widths)), workload.dtype)
    for mix, adapters_of in MIXES.items():
        adapters = adapters_of(tiles)
        lists, read = work_lists(workload, adapters, len(widths)), distinct_pages(workload, adapters)
        yield Case(
            op=f"affine {kind}, {group}",
            mix=mix,
            operands=tuple((pools, work) for work in lists),
            carry=y,
            calls=layers,
            over_layers=ops.over_layers,
            reference=_step(reference.affine),
            steps={ops.chosen["affine"].name: _step(ops.affine), "gather": _step(peers.gather_affine)},
            nbytes=2 * y.nbytes + read * page_bytes,
            footprint=y.nbytes + layers * min(len(lists) * read, pages) * page_bytes,
            operations=4 * y.size,
        )


def _step(affine: Affine) -> Step:
    def step(operands: Operands, layer: LayerIndex, y: Array) -> Array:
        pools, work = operands
        return affine(y, pools, layer, work, tuple(range(len(pools))))

    return step
