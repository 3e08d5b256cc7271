"""How the Triton kernel cuts its work: by shape alone."""

from dataclasses import dataclass

from jax.experimental import pallas as pl

from pallas_kernels.triton_limits import LEAST_SIZE, check_size

MOST_ROWS = 128
"""Of x, for the kernel. For more, numbers that are made once, for all of them, cost less than their codes save."""
MIN_PROGRAMS = 128
"""With fewer, a program takes fewer rows of W, so that memory is asked from all over the chip."""
WIDEST = 64
"""Rows of W that a program takes at most: what `wgmma` and `tcgen05` take at least."""
BLOCK = 64
"""Codes' bytes that a loop's step takes of each row of W: with 4 bits, two products that sum over 64 columns."""
STAGES = 5
LOOKED_UP_STAGES = 4
"""Where levels are looked up, which takes shared memory too: an L4, an A10G or an RTX 4090 has 99 KB for a program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedLinearConfig:
    """The cut of one call.

    Attributes:
        rows: of x that a program takes.
        outs: rows of W that it takes.
        block: bytes of codes that a loop's step takes of each of these.
        warps: of 32 threads, a program.
        stages: of the loop's software pipeline.
    """

    rows: int
    outs: int
    block: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        check_size("rows of a program", self.rows)
        check_size("rows of W of a program", self.outs)
        check_size("columns of a product", self.block)


def quantized_linear_config(rows: int, outs: int, *, looked_up: bool = False) -> QuantizedLinearConfig:
    """For x of some rows, and W of some; `looked_up` says that its codes name levels in a table."""
    mine = min(max(LEAST_SIZE, pl.next_power_of_2(rows)), WIDEST)
    taken = WIDEST
    while taken > LEAST_SIZE and pl.cdiv(rows, mine) * pl.cdiv(outs, taken) < MIN_PROGRAMS:
        taken //= 2
    return QuantizedLinearConfig(
        rows=mine,
        outs=taken,
        block=BLOCK,
        warps=taken // LEAST_SIZE,
        stages=LOOKED_UP_STAGES if looked_up else STAGES,
    )
