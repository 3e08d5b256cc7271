"""What becomes of DoRA's magnitudes and of biases on lora_B, the gain and the bias of each output, and the way back."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openlora_jax.adapters.factors import F32

BLOCK_ELEMENTS = 1 << 22
"""Elements of a changed weight that are made at once."""


class Vectors(NamedTuple):
    """An output y of the base becomes y + gain y + bias, and to that comes what the factors add; `[d_out]` each.

    Attributes:
        gain: less 1.
    """

    gain: F32
    bias: F32


def dora_vectors(magnitude: F32, weight: F32, base_bias: F32 | None, a: F32, b: F32) -> Vectors:
    """Those of DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353), as PEFT computes it.

        y = g (W x + B'A x) + base_bias,    g = magnitude / |W + B'A|

    with the norm of each row; B must be multiplied by the gain as well.

    Args:
        magnitude: `[d_out]`.
        weight: `[d_out, d_in]`.
        base_bias: `[d_out]`, which y has in it already.
        a: `[rank, d_in]`.
        b: `[rank, d_out]`, with the scale in it.

    Returns:
        Not finite where a row of the sum is zero, or a magnitude is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        gain = (magnitude / _row_norms(weight, a, b) - 1).astype(np.float32)
        bias = np.zeros_like(gain) if base_bias is None else -gain * base_bias
    return Vectors(gain, bias)


def without_gain(gain: F32, weight: F32, a: F32, b: F32) -> tuple[F32, F32]:
    """The magnitude that a gain came from, and B without it: what `dora_vectors` was given.

    Args:
        gain: less 1, `[d_out]`. Where it is -1 nothing is left of B, and nothing counts.
        weight: `[d_out, d_in]`.
        a: `[rank, d_in]`.
        b: `[rank, d_out]`, with scale and gain in it.
    """
    whole = gain + 1
    plain = np.divide(b, whole, out=np.zeros_like(b), where=whole != 0)
    return (whole * _row_norms(weight, a, plain)).astype(np.float32), plain


def _row_norms(weight: F32, a: F32, b: F32) -> NDArray[np.float64]:
    """Of W + B'A."""
    norms = np.empty(len(weight), np.float64)
    step = max(1, BLOCK_ELEMENTS // weight.shape[1])
    for first in range(0, len(weight), step):
        rows = slice(first, first + step)
        changed = (weight[rows] + b[:, rows].T @ a).astype(np.float64)
        norms[rows] = np.sqrt(np.einsum("oi,oi->o", changed, changed))
    return norms
