"""For CUDA: one kernel for decode and chunked prefill, which reads the stacked cache through the block tables.

A program owns some rows of one KV head: queries of one tile, the heads of the group side by side, so that one read of
keys and values serves them all. It walks the blocks that its tokens see, a span of W positions a turn; with Q rows,

    s[Q, W] = q[Q, E] K[E, W] / sqrt(E)
    o[Q, E] = softmax(s)[Q, W] V[W, E]

with the running softmax of Milakov and Gimelshein (2018, arXiv:1805.02867) in float32. Keys and values lie in the cache
as the tensor cores take them. In a decode step of few rows several programs share a tile's positions, and a second
launch joins what they found (Flash-Decoding, Dao et al. 2023): no atomics, so the same sums every time.

No library serves this op. `jax.experimental.pallas.ops.gpu.paged_attention` is decode alone, wants one layer's keys and
values as `[K, B, S, E]`, so that the layer would be cut out of the cache and turned over at every step, takes no head
width but powers of two, and is deprecated, as are `attention` and `decode_attention` beside it, which know no block
tables. Of tokamax (0.0.17) every attention kernel for GPUs refuses paging, and it needs Python 3.12 and JAX 0.11. The
paged attention of cuDNN, in a private module of JAX, takes one layer, keys with the width last, no float32.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Float, Float32, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex
from pallas_kernels.paged_attention.config import AttentionConfig, attention_config
from pallas_kernels.paged_attention.shapes import check_operands
from pallas_kernels.triton_call import dot, triton_call

Ref = Any
LOG2_E = math.log2(math.e)
"""exp(x) = exp2(x * LOG2_E), and exp2 is one instruction."""


def paged_attention(
    q: Float[Array, "T L H E"],
    kv: KvCache,
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    length: Int[Array, "T"],
    *,
    interpret: bool = False,
) -> Float[Array, "T L H E"]:
    """o[t, l] = softmax(q[t, l] K^T / sqrt(E)) V over the positions 0..start[t] + l.

    Blocks past those positions are not read, and blocks that the cache does not have count as unseen. Rows that see
    nothing, such as those of a tile of length 0, are 0.

    Raises:
        ValueError: the operands do not fit together, or this kernel; see `shapes.py`.
    """
    check_operands(q, kv, table, start, length)
    config = attention_config(q, kv, table)
    tiles, tokens, heads, _ = q.shape
    kv_heads = kv.values.shape[2]

    def paged_attention_kernel(*refs: Ref) -> None:
        _attend(config, *refs)

    attend = triton_call(
        paged_attention_kernel,
        (
            jax.ShapeDtypeStruct((config.splits, *q.shape), q.dtype if config.splits == 1 else jnp.float32),
            jax.ShapeDtypeStruct((config.splits, *q.shape[:3]), jnp.float32),
        ),
        grid=(config.splits, pl.cdiv(tokens * heads // kv_heads, config.rows), tiles, kv_heads),
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )
    operands = [part for part in kv if part is not None]
    outputs, logsums = attend(jnp.asarray(layer, jnp.int32), table, start, length, q, *operands)
    if config.splits == 1:
        output: Array = outputs[0]
    else:
        shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
        join = triton_call(join_splits_kernel, shape, grid=q.shape[2::-1], warps=4, stages=1, interpret=interpret)
        output = join(outputs, logsums)
    return output


class _Sums(NamedTuple):
    """A softmax under way: of powers of two, relative to the best score so far."""

    best: Float[Array, "Q"]
    total: Float[Array, "Q"]
    output: Float[Array, "Q E"]


def _attend(
    config: AttentionConfig,
    layer_ref: Ref,
    table_ref: Ref,
    start_ref: Ref,
    length_ref: Ref,
    q_ref: Ref,
    keys_ref: Ref,
    values_ref: Ref,
    *others: Ref,
) -> None:
    """What one program does. The others are the scales of a cache in int8, then what it writes: output and logsum."""
    *scales_ref, output_ref, logsum_ref = others
    split, chunk, tile, kv_head = (pl.program_id(axis) for axis in range(4))
    tokens, heads, width = q_ref.shape[1:]
    blocks, kv_heads, block_tokens = values_ref.shape[1:4]
    groups, turns = heads // kv_heads, block_tokens // config.span
    layer, start, length = layer_ref[()], start_ref[tile], length_ref[tile]

    row = chunk * config.rows + jnp.arange(config.rows, dtype=jnp.int32)
    token, head = lax.div(row, groups), kv_head * groups + lax.rem(row, groups)
    column = jnp.arange(config.columns, dtype=jnp.int32)
    real = column < width
    mine = (token < tokens)[:, None] & real[None, :]
    place = (tile, token[:, None], head[:, None], column[None, :])
    q = plgpu.load(q_ref.at[place], mask=mine, other=0)
    last_seen = start + jnp.minimum(token, length - 1)

    def add_span(i: Array, sums: _Sums) -> _Sums:
        block = table_ref[tile, lax.div(i, turns)]
        known = (block >= 0) & (block < blocks)
        step = jnp.arange(config.span, dtype=jnp.int32)
        inside, position = lax.rem(i, turns) * config.span + step, i * config.span + step
        # What lies past the end may be NaN, which times 0 is still NaN: values are masked. Of keys only the scores are:
        # a mask along neighbours would have them copied two bytes at a time.
        key_place = (layer, block, kv_head, column[:, None], inside[None, :])
        keys = plgpu.load(keys_ref.at[key_place], mask=real[:, None] & known, other=0)
        written = (position < start + length) & known
        value_place = (layer, block, kv_head, inside[:, None], column[None, :])
        values = plgpu.load(values_ref.at[value_place], mask=written[:, None] & real[None, :], other=0)
        seen = (position[None, :] <= last_seen[:, None]) & known
        scores = dot(q, keys.astype(q.dtype)) * (LOG2_E / math.sqrt(width))
        value_scale = None
        if scales_ref:  # a product takes codes, which every type holds exactly, and its result the scales
            key_scale = plgpu.load(scales_ref[0].at[layer, block, 0, kv_head, inside], mask=written, other=0)
            value_scale = plgpu.load(scales_ref[0].at[layer, block, 1, kv_head, inside], mask=written, other=0)
            scores *= key_scale[None, :]
        return _add(sums, jnp.where(seen, scores, -jnp.inf), values.astype(q.dtype), value_scale)

    zeros = jnp.zeros(config.rows, jnp.float32)
    sums = _Sums(zeros - 1e30, zeros, jnp.zeros((config.rows, config.columns), jnp.float32))
    first, last = lax.div(chunk * config.rows, groups), lax.div((chunk + 1) * config.rows - 1, groups)
    end = jnp.where(first < length, start + jnp.minimum(last + 1, length), 0)
    spans = jnp.minimum(lax.div(end + (config.span - 1), config.span), table_ref.shape[1] * turns)
    share = lax.div(spans + (config.splits - 1), config.splits)
    sums = lax.fori_loop(split * share, jnp.minimum((split + 1) * share, spans), add_span, sums)

    total = jnp.where(sums.total > 0, sums.total, 1)
    plgpu.store(output_ref.at[split, *place], (sums.output / total[:, None]).astype(output_ref.dtype), mask=mine)
    plgpu.store(logsum_ref.at[split, tile, token, head], sums.best / LOG2_E + jnp.log(total), mask=token < tokens)


def _add(
    sums: _Sums, scores: Float[Array, "Q W"], values: Float[Array, "W E"], scale: Float32[Array, "W"] | None
) -> _Sums:
    best = jnp.maximum(sums.best, jnp.max(scores, axis=1))
    weights, shrink = jnp.exp2(scores - best[:, None]), jnp.exp2(sums.best - best)
    total = sums.total * shrink + jnp.sum(weights, axis=1)
    if scale is not None:
        weights *= scale[None, :]
    return _Sums(
        best=best,
        total=total,
        output=sums.output * shrink[:, None] + dot(weights.astype(values.dtype), values),
    )


def join_splits_kernel(outputs_ref: Ref, logsums_ref: Ref, output_ref: Ref) -> None:
    """One query's output, from what its splits found: each counts by the sum of its weights."""
    head, token, tile = (pl.program_id(axis) for axis in range(3))
    splits, width = outputs_ref.shape[0], outputs_ref.shape[4]
    split = jnp.arange(splits, dtype=jnp.int32)
    column = jnp.arange(pl.next_power_of_2(width), dtype=jnp.int32)
    real = column < width
    logsum = logsums_ref[split, tile, token, head]
    weights = jnp.exp(logsum - jnp.max(logsum))
    place = (split[:, None], tile, token, head, column[None, :])
    outputs = plgpu.load(outputs_ref.at[place], mask=real[None, :], other=0)
    output = jnp.sum(weights[:, None] * outputs, axis=0) / jnp.sum(weights)
    plgpu.store(output_ref.at[tile, token, head, column], output.astype(output_ref.dtype), mask=real)
