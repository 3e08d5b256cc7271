"""For XLA:CPU: online softmax over the KV blocks, as many as this step's longest sequence has."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex


def paged_attention(
    q: Float[Array, "T L H E"],
    kv: KvCache,
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    length: Int[Array, "T"],
) -> Float[Array, "T L H E"]:
    """o[t, l] = softmax(q[t, l] K^T / sqrt(E)) V over the positions 0..start[t] + l.

    Every turn reads block c of all tiles. The softmax is the running one of Milakov and Gimelshein (2018): the sums
    are kept relative to the largest score so far. Tiles and KV heads are one batch axis, the queries of a KV head
    lie side by side: two separate axes would make XLA copy both gathered blocks.
    """
    tiles, tokens, heads, width = q.shape
    kv_heads, block_tokens = kv.values.shape[2:4]
    batch, groups = tiles * kv_heads, heads // kv_heads
    grouped = q.reshape(tiles, tokens, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    queries = grouped.reshape(batch, groups * tokens, width).astype(jnp.float32) * (width**-0.5)
    position = start[:, None] + jnp.tile(jnp.arange(tokens, dtype=jnp.int32), groups)[None, :]
    position, end = jnp.repeat(position, kv_heads, axis=0), jnp.repeat(start + length, kv_heads)

    def add_block(c: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best, total, summed = carry
        blocks = lax.dynamic_index_in_dim(table, c, axis=1, keepdims=False)
        keys = kv.keys.at[layer, blocks].get(mode="promise_in_bounds").reshape(batch, width, block_tokens)
        values = kv.values.at[layer, blocks].get(mode="promise_in_bounds").reshape(batch, block_tokens, width)
        key_position = c * block_tokens + jnp.arange(block_tokens, dtype=jnp.int32)
        # Past its sequence's end a block holds what its former owner left, NaN perhaps, which times 0 is still NaN.
        written = key_position[None, :] < end[:, None]
        scores = jnp.einsum("nqe,nes->nqs", queries, keys.astype(jnp.float32))
        if kv.scales is None:
            values = jnp.where(written[:, :, None], values.astype(jnp.float32), 0)
        else:  # codes are finite, whoever left them
            scales = kv.scales.at[layer, blocks].get(mode="promise_in_bounds")
            scores = scores * scales[:, 0].reshape(batch, 1, block_tokens)
            value_scale = jnp.where(written, scales[:, 1].reshape(batch, block_tokens), 0)
        scores = jnp.where(key_position[None, None, :] <= position[:, :, None], scores, -jnp.inf)
        new_best = jnp.maximum(best, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_best[..., None])
        shrink = jnp.exp(best - new_best)
        total = total * shrink + jnp.sum(weights, axis=-1)
        if kv.scales is not None:
            weights = weights * value_scale[:, None, :]
        summed = summed * shrink[..., None] + jnp.einsum("nqs,nse->nqe", weights, values.astype(jnp.float32))
        return new_best, total, summed

    # Position 0 is seen by every query, so after the first block `best` is a score.
    zeros = jnp.zeros(queries.shape[:-1], jnp.float32)
    turns = (jnp.max(start + length) + block_tokens - 1) // block_tokens
    carry = (jnp.full_like(zeros, -1e30), zeros, jnp.zeros_like(queries))
    _, total, summed = lax.fori_loop(jnp.int32(0), turns, add_block, carry)
    output: Array = (summed / total[..., None]).reshape(tiles, kv_heads, groups, tokens, width)
    return output.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)
