"""How the Triton kernels cut their work: by shape alone, never by what a step's list holds."""

from dataclasses import dataclass

from jax.experimental import pallas as pl

from pallas_kernels.lora.shapes import PAGE_RANKS, STEP_COLUMNS
from pallas_kernels.triton_limits import check_size

PASS_PAGES = (16, 4, 1)
"""Widths of a pass, widest first. 256 ranks are the most whose products the registers hold."""
BLOCK_BYTES = 20 * 1024
"""What a loop's step loads at most. Three are under way at once, so 64 programs ask for 3 MB at a time; memory of
3.3 TB/s has to be asked for 2 MB at a time, what it delivers while an answer takes its 600 ns."""
STAGES = 4
STRETCH = 256
"""Columns that one sum of x A^T takes of a block. Each of its 16 tensor core products waits for the one before; of
narrower sums, and so more, the addresses spill."""
MIN_PROGRAMS = 64
"""With fewer, spans are halved, although each of them computes x A^T anew."""
WIDE_OUTPUT = 8
"""A span this many times as wide as the input is halved in any case: reading A once more hardly adds to reading B."""

MOST_COLUMNS = 512
"""Of a page that a step of the Mosaic kernel takes: 16 KB of 16-bit numbers on their way, and 64 sums a thread."""

APART_SIZE = 128 * 64 * 64
"""Numbers of an output that is added apart. The base's product has fewer tiles of 64 x 64 than a large GPU has
multiprocessors, so XLA splits its sum, and whatever reads the output adds up the parts, and then what is apart as well.
For a kernel that adds onto y it had to add them up in one more launch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """The products with some of a tile's items.

    Attributes:
        pages: items that it takes at most.
        block: columns of x and A, then of B and y, that a loop's step takes.
        sums: of x A^T, added up at the end. They do not wait for one another, but take registers.
    """

    pages: int
    block: int
    sums: int

    def __post_init__(self) -> None:
        check_size("ranks of a pass", self.pages * PAGE_RANKS)
        check_size("columns of a sum", self.block // self.sums)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """The cut of one call.

    Attributes:
        rows: tokens of a tile that a program takes.
        span: columns of a module's output that a program takes.
        passes: what a program takes its items in, widest first.
        warps: of 32 threads, a program.
        stages: of the loops' software pipelines.
        apart: the items' sums are written to an array of their own, which XLA adds to y; else onto y in place.
    """

    rows: int
    span: int
    passes: tuple[Pass, ...]
    warps: int
    stages: int
    apart: bool

    def __post_init__(self) -> None:
        check_size("tokens of a program", self.rows, least=1)
        check_size("columns of a program", self.span, least=max(step.block for step in self.passes))


def lora_config(tiles: int, tokens: int, width_in: int, widths_out: tuple[int, ...], itemsize: int) -> LoraConfig:
    """For tiles of some tokens, and the modules that share their input.

    64 rows of 16-bit numbers are what the tensor cores of Hopper and Blackwell want at least. Between 16 and 64 there
    is nothing to gain, and numbers of 32 bits are multiplied on plain cores, where more than 16 rows spill.
    """
    rows = 64 if itemsize == 2 and tokens >= 64 else min(tokens, 16)
    passes = tuple(_pass(pages, rows, itemsize) for pages in PASS_PAGES)
    narrowest = max(each.block for each in passes)

    def programs(span: int) -> int:
        return tiles * (tokens // rows) * sum(pl.cdiv(width, span) for width in widths_out)

    span = max(narrowest, pl.next_power_of_2(max(widths_out)))
    while span > narrowest and (programs(span) < MIN_PROGRAMS or span > WIDE_OUTPUT * width_in):
        span //= 2
    return LoraConfig(
        rows=rows,
        span=span,
        passes=passes,
        warps=8 if rows >= 16 else 4,
        stages=STAGES,
        apart=tiles * tokens * sum(widths_out) <= APART_SIZE,
    )


def _pass(pages: int, rows: int, itemsize: int) -> Pass:
    block = PAGE_RANKS  # the least that a product may sum over
    while 2 * block * (rows + pages * PAGE_RANKS) * itemsize <= BLOCK_BYTES:
        block *= 2
    return Pass(pages=pages, block=block, sums=pl.cdiv(block, STRETCH))


def mosaic_spans(tiles: int, width_in: int, widths_out: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Columns of each module's output that a program of the Mosaic kernel takes: as many as Triton's, in its steps."""
    span = lora_config(tiles, 1, width_in, widths_out, itemsize).span
    return tuple(max(span // step, 1) * step for step in map(columns_of_step, widths_out))


def columns_of_step(width: int) -> int:
    """The most columns, of those that the Mosaic kernel can take at once, that divide a width."""
    return max(step for step in range(STEP_COLUMNS, MOST_COLUMNS + 1, STEP_COLUMNS) if width % step == 0)
