"""For XLA:CPU: one slice update a tile, which it does in place; a scatter would walk element by element."""

import jax.numpy as jnp
from jax import Array, lax
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
    block_tokens = kv.shape[4]
    blocks = jnp.take_along_axis(table, (start // block_tokens)[:, None], axis=1)[:, 0]
    fresh = jnp.stack([k, v], axis=1).swapaxes(2, 3).astype(kv.dtype)[:, None, None]
    for tile in range(k.shape[0]):
        kv = lax.dynamic_update_slice(kv, fresh[tile], (layer, blocks[tile], 0, 0, start[tile] % block_tokens, 0))
    return kv
