"""How the Triton kernel cuts its work: by shape alone."""

import math
from dataclasses import dataclass

from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache

MAX_ROWS = 128
"""All of a program's rows share each read of keys and values. More do not fit into its registers."""
MAX_COLUMNS = 128
"""A head's width."""
MAX_SPAN = 64
"""Positions. The pipeline holds two spans of keys and of values, 64 KB of bfloat16: two or three programs fit into a
multiprocessor, and a chip has more on the way than memory of 8 TB/s delivers within its latency."""
MIN_SIDE = 16
"""The least that tensor cores take of a side. A product over 8 positions returns twice the sum, without a word."""
MIN_PROGRAMS = 128
"""With fewer, most of a chip's 100 to 150 multiprocessors would wait while some read a long context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """The cut of one call.

    Attributes:
        rows: of queries that a program takes: those of its tile that share a KV head, token by token.
        span: positions that one turn of the loop takes; a divisor of a block.
        columns: that hold a head's width; the rest of them is masked.
        splits: programs that share a tile's positions; a power of two.
        warps: of 32 threads, a program.
        stages: of the loop's software pipeline.
    """

    rows: int
    span: int
    columns: int
    splits: int
    warps: int
    stages: int


def attention_config(q: Float[Array, "T L H E"], kv: KvCache, table: Int[Array, "T C"]) -> AttentionConfig:
    """The cut of a call with these operands."""
    tiles, tokens, heads, width = q.shape
    kv_heads, block_tokens = kv.values.shape[2:4]
    # Tensor cores take no float32: its operands lie in registers, which do not hold more of them.
    max_rows, max_span = (MAX_ROWS, MAX_SPAN) if q.dtype.itemsize == 2 else (MIN_SIDE, MIN_SIDE)
    rows = min(max(pl.next_power_of_2(tokens * heads // kv_heads), MIN_SIDE), max_rows)
    span = math.gcd(block_tokens, max_span)
    splits = 1
    if tokens == 1:  # a prompt's rows are programs enough, and their partial sums would be more than what they read
        most = min(MIN_PROGRAMS // (tiles * kv_heads), table.shape[1] * block_tokens // span)
        splits = 1 << max(0, most.bit_length() - 1)
    return AttentionConfig(
        rows=rows,
        span=span,
        columns=max(pl.next_power_of_2(width), MIN_SIDE),
        splits=splits,
        warps=8 if rows > 64 else 4,
        stages=3,
    )
