"""The plain form, and the oracle of the others: the whole table gathered, one softmax."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def paged_attention(
    q: Float[Array, "T L H E"],
    kv: Float[Array, "Y B 2 K S E"],
    layer: Int[Array, ""],
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    length: Int[Array, "T"],
) -> Float[Array, "T L H E"]:
    """o[t, l] = softmax(q[t, l] K^T / sqrt(E)) V over the positions 0..start[t] + l."""
    tiles, tokens, heads, width = q.shape
    groups = heads // kv.shape[3]
    # [T, C, 2, K, S, E] -> 2 of [T, C * S, H, E]
    gathered = kv[layer, table].astype(jnp.float32).transpose(2, 0, 1, 4, 3, 5)
    keys, values = jnp.repeat(gathered.reshape(2, tiles, -1, kv.shape[3], width), groups, axis=3)
    key_position = jnp.arange(keys.shape[1])
    written = key_position[None, :] < (start + length)[:, None]
    values = jnp.where(written[:, :, None, None], values, 0)
    position = start[:, None] + jnp.arange(tokens)[None, :]
    seen = key_position[None, None, :] <= position[:, :, None]
    scores = jnp.einsum("tlhe,tphe->thlp", q.astype(jnp.float32), keys) / width**0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("thlp,tphe->tlhe", weights, values).astype(q.dtype)
