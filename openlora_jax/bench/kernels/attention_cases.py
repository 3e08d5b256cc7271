"""Cases of `paged_attention` and `kv_write`."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.bench.kernels import peers
from openlora_jax.bench.kernels.case import CALLS, Case, Step, layers_beyond, normal
from openlora_jax.bench.kernels.workload import Workload
from pallas_kernels.kv_cache import KvCache, kv_bytes
from pallas_kernels.kv_write import reference as kv_write_reference
from pallas_kernels.kv_write.api import KvWrite
from pallas_kernels.layers import LayerIndex
from pallas_kernels.paged_attention import reference
from pallas_kernels.paged_attention.api import PagedAttention
from pallas_kernels.registry import Ops

PLACES = 4
"""Dispatches of `kv_write` until a block is written again."""
CODE = 24.0
"""Standard deviation of the codes of a cache in int8: the largest is five times as large."""


def attention_case(workload: Workload, ops: Ops, cache: int, kind: str, kv_dtype: str) -> Case:
    """Decode: sequences of half the context to all of it. Prefill: the last tokens of one sequence."""
    model, itemsize = workload.model, jnp.dtype(workload.dtype).itemsize
    tiles, tokens = workload.tiles(kind)
    columns = workload.context // workload.kv_block
    if kind == "decode":
        ends = np.linspace(workload.context // 2, workload.context, tiles).astype(np.int32)
        sequences, cached = tiles, int(ends.sum())
    else:
        ends = workload.context - workload.prefill + tokens * np.arange(1, tiles + 1, dtype=np.int32)
        sequences, cached = 1, workload.context
    blocks = 1 + np.random.default_rng(0).permutation(sequences * columns).astype(np.int32).reshape(sequences, columns)
    position_bytes = model.num_kv_heads * kv_bytes(dtype=kv_dtype, width=model.head_dim)
    layers = layers_beyond(cache, position_bytes * cached, model.num_layers)
    kv = _cache(workload, layers, 1 + blocks.size, kv_dtype)
    table, start = jnp.asarray(np.broadcast_to(blocks, (tiles, columns))), jnp.asarray(ends - tokens)
    q = normal(0, (tiles, tokens, model.num_heads, model.head_dim), workload.dtype)
    seen = int((ends[:, None] - np.arange(tokens)).sum())
    return Case(
        op=f"attention {kind}" if kv_dtype == workload.dtype else f"attention {kind}, {kv_dtype}",
        operands=((kv, table, start, jnp.full(tiles, tokens, jnp.int32)),),
        carry=q,
        calls=layers,
        over_layers=ops.over_layers,
        reference=_attention_step(reference.paged_attention),
        steps={
            ops.chosen["paged_attention"].name: _attention_step(ops.paged_attention),
            "gather": _attention_step(peers.gather_attention),
        },
        nbytes=position_bytes * cached + 2 * itemsize * q.size,
        footprint=position_bytes * cached * layers,
        operations=4 * model.q_size * seen,
    )


def kv_write_case(workload: Workload, ops: Ops, kind: str, kv_dtype: str) -> Case:
    """Each tile into a block of its own."""
    model, itemsize = workload.model, jnp.dtype(workload.dtype).itemsize
    tiles, tokens = workload.tiles(kind)
    generator = np.random.default_rng(0)
    blocks = 1 + generator.permutation(PLACES * tiles).astype(np.int32).reshape(PLACES, tiles, 1)
    places = workload.kv_block // tokens
    start = jnp.asarray(tokens * generator.integers(0, places, tiles), jnp.int32)
    k, v = (normal(seed, (tiles, tokens, model.num_kv_heads, model.head_dim), workload.dtype) for seed in (0, 1))
    layers = min(CALLS, model.num_layers)
    written = tiles * tokens * model.num_kv_heads * kv_bytes(dtype=kv_dtype, width=model.head_dim)
    return Case(
        op=f"kv_write {kind}" if kv_dtype == workload.dtype else f"kv_write {kind}, {kv_dtype}",
        operands=tuple((k, v, jnp.asarray(table), start) for table in blocks),
        carry=_cache(workload, layers, 1 + blocks.size, kv_dtype),
        calls=layers,
        over_layers=ops.over_layers,
        reference=_kv_write_step(kv_write_reference.kv_write),
        steps={ops.chosen["kv_write"].name: _kv_write_step(ops.kv_write)},
        nbytes=itemsize * (k.size + v.size) + written,
        footprint=written * layers * PLACES,
        operations=0,
    )


def _cache(workload: Workload, layers: int, blocks: int, dtype: str) -> KvCache:
    """Of random numbers, or of random codes whose products with their scales are about as large."""
    model = workload.model
    shape = (layers, blocks, model.num_kv_heads)
    of_keys, of_values = (*shape, model.head_dim, workload.kv_block), (*shape, workload.kv_block, model.head_dim)
    if dtype != "int8":
        return KvCache(normal(10, of_keys, workload.dtype), normal(11, of_values, workload.dtype))
    scales = (layers, blocks, 2, model.num_kv_heads, workload.kv_block)
    return KvCache(
        keys=normal(10, of_keys, "int8", CODE),
        values=normal(11, of_values, "int8", CODE),
        scales=jnp.exp(normal(12, scales, "float32", 0.1)) / CODE,
    )


def _attention_step(attention: PagedAttention) -> Step:
    def step(operands: tuple[KvCache, Array, Array, Array], layer: LayerIndex, q: Array) -> Array:
        kv, table, start, length = operands
        return attention(q, kv, layer, table, start, length)

    return step


def _kv_write_step(kv_write: KvWrite) -> Step:
    def step(operands: tuple[Array, Array, Array, Array], layer: LayerIndex, kv: KvCache) -> KvCache:
        k, v, table, start = operands
        first = jnp.zeros_like(start)
        return kv_write(kv, k, v, layer, table, start, first, first + k.shape[1])

    return step
