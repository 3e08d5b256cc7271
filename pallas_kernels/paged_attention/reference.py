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
    keys, values = jnp.moveaxis(kv[layer, table].astype(jnp.float32), 2, 0)
    keys, values = (
        jnp.repeat(x.swapaxes(2, 3).reshape(tiles, -1, *x.shape[2:3], width), groups, 2) for x in (keys, values)
    )
    scores = jnp.einsum("tlhe,tphe->thlp", q.astype(jnp.float32), keys) / width**0.5
    position = start[:, None] + jnp.arange(tokens)[None, :]
    seen = jnp.arange(keys.shape[1])[None, None, :] <= position[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("thlp,tphe->tlhe", weights, values).astype(q.dtype)
