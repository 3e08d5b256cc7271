"""The paged KV cache, which two ops share: one writes it, the other reads it."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


class KvCache(NamedTuple):
    """Blocks of S positions over all layers; block 0 is scratch.

    Attributes:
        keys: positions last, so that a product of queries with a block reads its rows in order.
        values: positions first, for the same reason.
    """

    keys: Float[Array, "Y B K E S"]
    values: Float[Array, "Y B K S E"]

    @classmethod
    def create(cls, *, layers: int, blocks: int, heads: int, block_tokens: int, width: int, dtype: str) -> "KvCache":
        """An empty cache."""
        return cls(
            keys=jnp.zeros((layers, blocks, heads, width, block_tokens), dtype),
            values=jnp.zeros((layers, blocks, heads, block_tokens, width), dtype),
        )

    @property
    def block_tokens(self) -> int:
        return int(self.values.shape[3])
