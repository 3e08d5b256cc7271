"""Cases of `int4_lora`."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.adapters.modules import PAGE_RANK, module_shapes
from openlora_jax.bench.kernels import peers
from openlora_jax.bench.kernels.case import PERIOD, Case, Step, layers_beyond, x_and_y
from openlora_jax.bench.kernels.lora_cases import popularities
from openlora_jax.bench.kernels.work_lists import pool_pages
from openlora_jax.bench.kernels.workload import GROUPS, Workload
from pallas_kernels.int4_lora import reference
from pallas_kernels.int4_lora.api import Int4Lora, Int4Pages
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import Lora, WorkList
from pallas_kernels.registry import Ops

CODE = 4.6
"""Standard deviation of codes that are drawn evenly."""

Operands = tuple[Array, dict[str, Any], WorkList]


def int4_lora_cases(workload: Workload, ops: Ops, cache: int, kind: str, group: str) -> Iterator[Case]:
    """One for each mix, all on the same pools; beside it `lora` of the same numbers in full."""
    tiles, tokens = workload.tiles(kind)
    shapes = [module_shapes(workload.model)[module] for module in GROUPS[group]]
    d_in, d_out, itemsize = shapes[0].d_in, sum(shape.d_out for shape in shapes), jnp.dtype(workload.dtype).itemsize
    pages = pool_pages(workload, tiles)
    parts = _page_parts(len(shapes) * d_in) + _page_parts(d_out)
    page_bytes = sum(part.size * part.dtype.itemsize for part in parts)
    layers = layers_beyond(cache, pages * page_bytes, workload.model.num_layers)
    codes = tuple(_pool(seed, (layers, pages), d_in, shape.d_out) for seed, shape in enumerate(shapes))
    full = tuple(tuple(part.astype(workload.dtype) for part in reference.numbers(pool)) for pool in codes)
    x, y = x_and_y((tiles, tokens), d_in, d_out, workload.dtype)
    for mix, lists, items, read in popularities(workload, tiles, len(shapes)):
        yield Case(
            op=f"int4 lora {kind}, {group}",
            mix=mix,
            operands=tuple((x, {"codes": codes, "full": full}, work) for work in lists),
            carry=y,
            calls=layers,
            over_layers=ops.over_layers,
            reference=_step(reference.int4_lora, "codes"),
            steps={
                ops.chosen["int4_lora"].name: _step(ops.int4_lora, "codes"),
                "gather": _step(peers.gather_int4_lora, "codes"),
                "dense": _step(ops.lora, "full"),
            },
            nbytes=read * page_bytes + itemsize * (x.size + 2 * y.size),
            footprint=layers * min(len(lists) * read, pages) * page_bytes,
            operations=2 * items * tokens * PAGE_RANK * (len(shapes) * d_in + d_out),
        )


def _page_parts(width: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Words and scales of one page of so many columns."""
    return (
        jax.ShapeDtypeStruct((PAGE_RANK, width // 4), jnp.uint16),
        jax.ShapeDtypeStruct((PAGE_RANK, width // 32), jnp.float16),
    )


def _pool(seed: int, pages: tuple[int, int], d_in: int, d_out: int) -> Int4Pages:
    """Random pages, whose products are about as large as what they are added to."""
    generator = np.random.default_rng(seed)

    def drawn(width: int, scale: float) -> tuple[Array, Array]:
        words, scales = _page_parts(width)
        codes = generator.integers(0, 2**16, PERIOD, np.uint16)
        factors = (scale / CODE * generator.uniform(0.5, 1.5, PERIOD)).astype(np.float16)
        return (
            jnp.asarray(np.resize(codes, (*pages, *words.shape))),
            jnp.asarray(np.resize(factors, (*pages, *scales.shape))),
        )

    return Int4Pages(*drawn(d_in, d_in**-0.5), *drawn(d_out, PAGE_RANK**-0.5))


def _step(lora: Lora | Int4Lora, which: str) -> Step:
    def step(operands: Operands, layer: LayerIndex, y: Array) -> Array:
        x, pools, work = operands
        added: Array = lora(x, y, pools[which], layer, work, tuple(range(len(pools[which]))))
        return added

    return step
