"""How the Triton kernel cuts its work: as that of plain pages does, but for what a pass takes."""

from dataclasses import replace

from pallas_kernels.int4_lora.api import WORDS
from pallas_kernels.lora.config import LoraConfig, Pass, lora_config

PASS_PAGES = (4, 1)
"""Widths of a pass, widest first. Its numbers are made in registers, which hold no more."""
BLOCK = {4: 128, 1: 256}
"""Columns that a loop's step takes of a pass' pages: each quarter is one product."""


def int4_config(tiles: int, tokens: int, width_in: int, widths_out: tuple[int, ...], itemsize: int) -> LoraConfig:
    """For tiles of some tokens, and the modules that share their input."""
    plain = lora_config(tiles, tokens, width_in, widths_out, itemsize)
    passes = tuple(
        Pass(pages=pages, block=BLOCK[pages] if itemsize == 2 else 4 * WORDS, sums=1) for pages in PASS_PAGES
    )
    return replace(plain, passes=passes, span=max(plain.span, *(each.block for each in passes)))
