"""How the Triton kernel cuts its work: by shape alone."""

from dataclasses import dataclass

from jax.experimental import pallas as pl

from pallas_kernels.triton_limits import LEAST_SIZE, check_size

MOST_ROWS = 64
"""Of x, that a program takes at most: a matrix is read once for so many."""
OUTS = 64
"""Rows of a matrix that a program takes: what `wgmma` and `tcgen05` take at least."""
BLOCK = 64
"""Columns that a loop's step sums over: of bfloat16, 128 bytes of each row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedLinearConfig:
    """The cut of one call.

    Attributes:
        rows: of x that a program takes.
        outs: rows of a matrix that it takes.
        block: columns that a loop's step sums over.
        warps: of 32 threads, a program.
        stages: of the loop's software pipeline.
    """

    rows: int
    outs: int = OUTS
    block: int = BLOCK
    warps: int = 4
    stages: int = 4

    def __post_init__(self) -> None:
        check_size("rows of a program", self.rows)
        check_size("rows of a matrix of a program", self.outs)
        check_size("columns of a product", self.block)


def saved_linear_config(rows: int) -> SavedLinearConfig:
    """For x of some rows."""
    return SavedLinearConfig(rows=min(max(LEAST_SIZE, pl.next_power_of_2(rows)), MOST_ROWS))
