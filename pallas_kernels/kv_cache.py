"""The paged KV cache, which two ops share: one writes it, the other reads it."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int8

LARGEST = 127
"""Of the codes of a cache in int8; -128 is none."""


class KvCache(NamedTuple):
    """Blocks of S positions over all layers; block 0 is scratch.

    Attributes:
        keys: positions last, so that a product of queries with a block reads its rows in order.
        values: positions first, for the same reason.
        scales: what codes are multiplied by where the cache is int8, one of each position and head: those of keys, then
            those of values. So a product takes the codes, and its result the scales.
    """

    keys: Float[Array, "Y B K E S"] | Int8[Array, "Y B K E S"]
    values: Float[Array, "Y B K S E"] | Int8[Array, "Y B K S E"]
    scales: Float32[Array, "Y B 2 K S"] | None = None

    @classmethod
    def create(cls, *, layers: int, blocks: int, heads: int, block_tokens: int, width: int, dtype: str) -> "KvCache":
        """An empty cache, of floats or `int8`."""
        return cls(
            keys=jnp.zeros((layers, blocks, heads, width, block_tokens), dtype),
            values=jnp.zeros((layers, blocks, heads, block_tokens, width), dtype),
            scales=jnp.zeros((layers, blocks, 2, heads, block_tokens), jnp.float32) if dtype == "int8" else None,
        )

    @property
    def block_tokens(self) -> int:
        return int(self.values.shape[3])


class Stored(NamedTuple):
    """Keys and values of new positions, as a cache stores them."""

    keys: Float[Array, "T L K E"] | Int8[Array, "T L K E"]
    values: Float[Array, "T L K E"] | Int8[Array, "T L K E"]
    scales: Float32[Array, "T L 2 K"] | None


def stored(kv: KvCache, k: Float[Array, "T L K E"], v: Float[Array, "T L K E"]) -> Stored:
    """Of this cache: in its type, or rounded to codes of -127 to 127 by their largest number.

    Where one of them is not finite, its scale is not, and neither is what is read.
    """
    if kv.scales is None:
        return Stored(k.astype(kv.keys.dtype), v.astype(kv.values.dtype), None)
    both = jnp.stack((k, v), axis=2).astype(jnp.float32)
    scales = jnp.max(jnp.abs(both), axis=-1) / LARGEST
    divisor = jnp.where((scales > 0) & jnp.isfinite(scales), scales, 1)
    codes = jnp.clip(jnp.round(both / divisor[..., None]), -LARGEST, LARGEST).astype(jnp.int8)
    return Stored(codes[:, :, 0], codes[:, :, 1], scales)


def kv_bytes(*, dtype: str, width: int) -> int:
    """Bytes of one position of one head, key and value, in a cache of `dtype`."""
    return 2 * (width + 4) if dtype == "int8" else 2 * width * jnp.dtype(dtype).itemsize
