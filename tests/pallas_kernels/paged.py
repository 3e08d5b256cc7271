"""Sequences in a paged cache, for the tests of the ops on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from pallas_kernels.kv_cache import KvCache

LAYERS, BLOCKS = 2, 30
Cached = NDArray[np.float32]
"""`[Y, B, 2, K, S, E]`: keys and values side by side, positions first in both."""


@dataclass(frozen=True)
class Shape:
    tokens: int = 1
    heads: int = 6
    kv_heads: int = 2
    width: int = 8
    block: int = 16
    columns: int = 5
    dtype: str = "float32"


@dataclass(frozen=True)
class Tiles:
    """What `paged_attention` is called with, but for the cache and the layer."""

    q: Array
    table: Array
    start: Array
    length: Array


def scene(shape: Shape, starts: Sequence[int], lengths: Sequence[int], seed: int = 0) -> tuple[Tiles, Cached]:
    """A tile of each of several sequences, whose blocks lie anywhere; what is past a sequence's end is NaN."""
    generator = np.random.default_rng(seed)
    q = generator.normal(size=(len(starts), shape.tokens, shape.heads, shape.width))
    kv = generator.normal(size=(LAYERS, BLOCKS, 2, shape.kv_heads, shape.block, shape.width)).astype(np.float32)
    table = 1 + generator.permutation(BLOCKS - 1)[: len(starts) * shape.columns].reshape(len(starts), shape.columns)
    for start, length, blocks in zip(starts, lengths, table, strict=True):
        for position in range(start + length, shape.columns * shape.block):
            kv[:, blocks[position // shape.block], :, :, position % shape.block] = np.nan
    tiles = Tiles(
        jnp.asarray(q, shape.dtype),
        jnp.asarray(table, jnp.int32),
        jnp.asarray(starts, jnp.int32),
        jnp.asarray(lengths, jnp.int32),
    )
    return tiles, kv


def cache(kv: Cached, dtype: str = "float32") -> KvCache:
    """In int8, as the numbers are rounded here, in numpy."""
    if dtype != "int8":
        return KvCache(jnp.asarray(kv[:, :, 0].swapaxes(3, 4), dtype), jnp.asarray(kv[:, :, 1], dtype))
    scales = (np.abs(kv).max(axis=5) / 127).astype(np.float32)
    codes = np.nan_to_num(np.round(kv / np.where(scales == 0, 1, scales)[..., None])).astype(np.int8)
    return KvCache(jnp.asarray(codes[:, :, 0].swapaxes(3, 4)), jnp.asarray(codes[:, :, 1]), jnp.asarray(scales))


def rounded(kv: Cached) -> Cached:
    """The numbers that such a cache holds."""
    keys, values, scales = map(np.asarray, cache(kv, "int8"))
    codes = np.stack((keys.swapaxes(3, 4), values), axis=2)
    numbers: Cached = codes * scales[..., None]
    return numbers
