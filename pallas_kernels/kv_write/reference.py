"""The plain form, and the oracle of the others."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def kv_write(
    kv: Float[Array, "Y B 2 K S E"],
    k: Float[Array, "T L K E"],
    v: Float[Array, "T L K E"],
    layer: Int[Array, ""],
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
) -> Float[Array, "Y B 2 K S E"]:
    """kv[layer, table[t, p // S], :, :, p % S] = (k[t, l], v[t, l]) for p = start[t] + l."""
    positions = start[:, None] + jnp.arange(k.shape[1])[None, :]
    blocks = jnp.take_along_axis(table, positions // kv.shape[4], axis=1)
    return kv.at[layer, blocks, :, :, positions % kv.shape[4]].set(jnp.stack([k, v], axis=2).astype(kv.dtype))
