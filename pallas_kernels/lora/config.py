"""How the Triton kernels cut their work: by shape alone, so that a tile's sums are the same in every batch."""

from dataclasses import dataclass

from jax.experimental import pallas as pl

PAGE_RANKS = 16
BLOCK_BYTES = 20 * 1024
"""What one step of a loop loads. `STAGES - 1` of these are on their way at once: about 2 MB over 64 programs, which is
what memory of 3.3 TB/s delivers within its latency."""
WIDTHS = (16, 4, 1)
"""Pages that a pass may take: 256, 64 and 16 ranks."""
MIN_PROGRAMS = 64
"""With fewer the output is split, although each split computes x A^T anew."""
FREE_SPLIT = 8
"""An output this many times wider than the input is split in any case: reading A again is then lost in reading B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One product with some of a tile's items.

    Attributes:
        pages: items that it takes, or fewer.
        block: columns of x and A, and then of B and y, that one step of a loop takes.
    """

    pages: int
    block: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """The cut of one call.

    Attributes:
        rows: tokens of a tile that a program takes.
        span: columns of one module's output that a program takes.
        passes: the products that a program chooses from, widest first.
        warps: of 32 threads, a program.
        stages: of the loops' software pipelines.
    """

    rows: int
    span: int
    passes: tuple[Pass, ...]
    warps: int
    stages: int


def lora_config(tiles: int, tokens: int, width_in: int, widths_out: tuple[int, ...], itemsize: int) -> LoraConfig:
    """For `tiles` tiles of `tokens` rows, one input and the outputs of the modules that share it."""
    rows = min(tokens, 64)
    passes = tuple(Pass(pages=pages, block=_block(rows + 16 * pages, itemsize)) for pages in WIDTHS)
    largest = max(each.block for each in passes)

    def programs(span: int) -> int:
        return tiles * (tokens // rows) * sum(pl.cdiv(width, span) for width in widths_out)

    span = pl.next_power_of_2(max(widths_out))
    while span > largest and (programs(span) < MIN_PROGRAMS or span > FREE_SPLIT * width_in):
        span //= 2
    return LoraConfig(rows=rows, span=max(span, largest), passes=passes, warps=4, stages=4)


def _block(lines: int, itemsize: int) -> int:
    """The widest block of `lines` lines that BLOCK_BYTES hold."""
    block = 16
    while 2 * block * lines * itemsize <= BLOCK_BYTES:
        block *= 2
    return block
