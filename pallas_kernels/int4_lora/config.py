"""How the Triton kernel cuts its work: as that of plain pages does, but for what a pass takes."""

from dataclasses import replace

from pallas_kernels.int4_lora.api import WORDS
from pallas_kernels.lora.config import LoraConfig, Pass, lora_config

PASS_PAGES = (4, 1)
"""Widths of a pass, widest first. Its numbers are made in registers, which hold no more."""
BLOCK = {4: 128, 1: 256}
"""Columns that a loop's step takes of a pass' pages: each quarter is one product."""
MANY_ROWS = 64
MANY_ROWS_BLOCK, MANY_ROWS_STAGES = 128, 3
"""The most columns, and the stages, of a program with as many rows: with more of either, some programs would spill."""


def int4_config(tiles: int, tokens: int, width_in: int, widths_out: tuple[int, ...], itemsize: int) -> LoraConfig:
    """For tiles of some tokens, and the modules that share their input."""
    plain = lora_config(tiles, tokens, width_in, widths_out, itemsize)
    many = plain.rows >= MANY_ROWS
    passes = tuple(Pass(pages=pages, block=_block(pages, many, itemsize), sums=1) for pages in PASS_PAGES)
    stages = MANY_ROWS_STAGES if many else plain.stages
    return replace(plain, stages=stages, passes=passes, span=max(plain.span, *(each.block for each in passes)))


def _block(pages: int, many: bool, itemsize: int) -> int:
    if itemsize > 2:  # multiplied on plain cores, which have registers for no more
        return 4 * WORDS
    return min(BLOCK[pages], MANY_ROWS_BLOCK) if many else BLOCK[pages]
