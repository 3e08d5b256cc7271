"""The plain form, and the oracle of the others: the whole table gathered, one softmax."""

import jax
import jax.numpy as jnp
from jax import Array
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
    """o[t, l] = softmax(q[t, l] K^T / sqrt(E)) V over the positions 0..start[t] + l."""
    tiles, tokens, heads, width = q.shape
    groups = heads // kv.values.shape[2]
    # To [T, C * S, H, E]
    blocks = kv.keys[layer, table].transpose(0, 1, 4, 2, 3), kv.values[layer, table].transpose(0, 1, 3, 2, 4)
    numbers = [each.astype(jnp.float32) for each in blocks]
    if kv.scales is not None:
        scales = kv.scales[layer, table].transpose(2, 0, 1, 4, 3)[..., None]
        numbers = [codes * scale for codes, scale in zip(numbers, scales, strict=True)]
    keys, values = (jnp.repeat(each.reshape(tiles, -1, each.shape[3], width), groups, axis=2) for each in numbers)
    key_position = jnp.arange(keys.shape[1])
    written = key_position[None, :] < (start + length)[:, None]
    values = jnp.where(written[:, :, None, None], values, 0)
    position = start[:, None] + jnp.arange(tokens)[None, :]
    seen = key_position[None, None, :] <= position[:, :, None]
    scores = jnp.einsum("tlhe,tphe->thlp", q.astype(jnp.float32), keys) / width**0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("thlp,tphe->tlhe", weights, values).astype(q.dtype)
