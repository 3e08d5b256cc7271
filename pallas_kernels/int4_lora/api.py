"""What a page in 4 bits is, and what every implementation of the op promises."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float16, Float32, UInt16

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList

WORDS = 16
"""Of 64 columns in 4 bits: word j holds columns j, j + 16, j + 32 and j + 48, the first in its lowest bits."""


class Int4Pages(NamedTuple):
    """One module's pool of pages in 4 bits: every 32 columns of a rank share a scale, w = scale (code - 8).

    The codes are in words of 16 bits, not in bytes: of an array of bytes between 2 and 4 GiB Pallas' Triton lowering
    computes offsets that wrap, and pools are as large.
    """

    a_words: UInt16[Array, "Y _ R _"]
    a_scale: Float16[Array, "Y _ R _"]
    b_words: UInt16[Array, "Y _ R _"]
    b_scale: Float16[Array, "Y _ R _"]

    @property
    def width_in(self) -> int:
        return 4 * int(self.a_words.shape[3])

    @property
    def width_out(self) -> int:
        return 4 * int(self.b_words.shape[3])


def unpacked(words: UInt16[Array, "*X W"], nibble: int) -> Float32[Array, "*X W"]:
    """Code - 8 of the column that each word has in its nth 4 bits."""
    return ((words >> 4 * nibble) & 15).astype(jnp.float32) - 8


def packed_words(codes: Array) -> UInt16[Array, "*X _"]:
    """Codes of 4 bits, packed as `pallas_kernels.quantized` does, two in a byte, in the words of a page."""
    pairs = codes.reshape(*codes.shape[:-1], -1, 2, WORDS).astype(jnp.uint16)
    words: Array = pairs[..., 0, :] | pairs[..., 1, :] << 8
    return words.reshape(*codes.shape[:-1], -1)


@runtime_checkable
class Int4Lora(Protocol):
    """The same as `Lora`, with pages in 4 bits."""

    def __call__(
        self,
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        pools: tuple[Int4Pages, ...],
        layer: LayerIndex,
        work: WorkList,
        modules: tuple[int, ...],
    ) -> Float[Array, "T L O"]: ...
