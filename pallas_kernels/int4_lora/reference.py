"""The plain form, and the oracle of the others: LoRA with the numbers that all pages stand for."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float16, Float32, UInt16

from pallas_kernels.int4_lora.api import WORDS, Int4Pages, unpacked
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.lora.reference import lora


def int4_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[Int4Pages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]]."""
    return lora(x, y, tuple(map(numbers, pools)), layer, work, modules)


def numbers(pool: Int4Pages) -> PagePair:
    """What the pages stand for, in float32."""
    return _numbers(pool.a_words, pool.a_scale), _numbers(pool.b_words, pool.b_scale)


def _numbers(words: UInt16[Array, "Y P R _"], scale: Float16[Array, "Y P R _"]) -> Float32[Array, "Y P R _"]:
    blocks = words.reshape(*words.shape[:3], -1, WORDS)
    codes = jnp.stack([unpacked(blocks, nibble) for nibble in range(4)], axis=-2)
    grouped = codes.reshape(*scale.shape, 2 * WORDS)
    return (grouped * scale.astype(jnp.float32)[..., None]).reshape(*words.shape[:3], -1)
