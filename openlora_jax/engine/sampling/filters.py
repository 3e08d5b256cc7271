"""Top-k, top-p and min-p without a sort: the least that a row keeps.

A row's weights are its probabilities over that of its most likely token, so the largest is 1. Each filter keeps the
tokens at or above some weight, hence all of them together those above the greatest of three. Where that lies within
the head, the few most likely tokens, it is read off there; else it is searched for among the weights, by halving: the
bits of non-negative floats order as integers do.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32

from openlora_jax.engine.sampling.batch import SamplingBatch

_BITS_OF_ONE = 0x3F800000


class Cut(NamedTuple):
    """What each row keeps: tokens whose logit and whose weight are both no less than these."""

    logit: Float32[Array, "T"]
    weight: Float32[Array, "T"]


def cut(
    weights: Float32[Array, "T V"], head: Float32[Array, "T K"], scale: Float32[Array, "T 1"], batch: SamplingBatch
) -> Cut:
    """Top-k, then top-p of what that left, then min-p.

    Tokens as likely as the last one kept are kept as well, so at least the best token is.

    Args:
        weights: exp((logit - best logit) / scale).
        head: the K greatest logits, best first.
        scale: the temperature.
        batch: the filters' parameters; top_k 0 and top_p 1 keep all.
    """
    top_k = jnp.where(batch.top_k == 0, weights.shape[1], batch.top_k)
    top_p = jnp.asarray(batch.top_p)
    logit, settled = _cut_in_head(weights, head, scale, top_k, top_p)
    none = jnp.zeros_like(top_p)
    weight: Array = lax.cond(jnp.all(settled), lambda: none, lambda: lax.map(_search, (weights, top_k, top_p, settled)))
    return Cut(jnp.where(settled, logit, -jnp.inf), jnp.maximum(weight, batch.min_p))


def _cut_in_head(
    weights: Float32[Array, "T V"],
    head: Float32[Array, "T K"],
    scale: Float32[Array, "T 1"],
    top_k: Int32[Array, "T"],
    top_p: Float32[Array, "T"],
) -> tuple[Float32[Array, "T"], Bool[Array, "T"]]:
    """The logit where top-k and top-p cut, and whether the head was enough to tell."""
    size, last = head.shape[1], head[:, -1]
    all_k = top_k >= weights.shape[1]
    kth = jnp.take_along_axis(head, jnp.minimum(top_k, size)[:, None] - 1, axis=1)[:, 0]
    kth = jnp.where(all_k, -jnp.inf, kth)
    after_k = jnp.where(head >= kth[:, None], jnp.exp((head - head[:, :1]) / scale), 0)
    mass = jnp.where(all_k, jnp.sum(weights, axis=1), jnp.sum(after_k, axis=1))
    reached = jnp.cumsum(after_k, axis=1) >= (top_p * mass)[:, None]
    nucleus = jnp.take_along_axis(head, jnp.argmax(reached, axis=1)[:, None], axis=1)[:, 0]
    # A token as likely as the head's last may have more of its like outside, so their mass is not known here.
    inside = (all_k | (kth > last)) & jnp.any(reached, axis=1)
    return jnp.where(top_p < 1, nucleus, kth), jnp.where(top_p < 1, inside, all_k | (top_k <= size))


def _search(row: tuple[Float32[Array, "V"], Int32[Array, ""], Float32[Array, ""], Bool[Array, ""]]) -> Array:
    """The weight where top-k and top-p cut in one whole row; 0 if that is settled."""
    weights, top_k, top_p, settled = row
    size = weights.shape[0]

    def count(least: Array) -> Array:
        return jnp.sum(jnp.where(weights >= least, jnp.float32(1), jnp.float32(0)))

    def mass(least: Array) -> Array:
        return jnp.sum(jnp.where(weights >= least, weights, 0))

    def both() -> Array:
        kth: Array = lax.cond(
            top_k < size, lambda: _greatest(count, top_k.astype(jnp.float32), jnp.ones_like), lambda: jnp.float32(0)
        )
        nucleus: Array = lax.cond(
            top_p < 1, lambda: _greatest(mass, top_p * mass(kth), lambda least: least), lambda: jnp.float32(0)
        )
        return jnp.maximum(kth, nucleus)

    result: Array = lax.cond(settled, lambda: jnp.float32(0), both)
    return result


def _greatest(measure: Callable[[Array], Array], target: Array, unit: Callable[[Array], Array]) -> Float32[Array, ""]:
    """The greatest weight w for which `measure(w)`, a sum over the tokens of at least w, reaches the target.

    `unit(w)` is the least that a token of weight w or more adds: where two bounds differ by less than two units there
    is one token between them, and no need to tell where exactly.
    """

    def unclear(bounds: tuple[Array, Array, Array, Array]) -> Array:
        low, high, at_low, at_high = bounds
        return (high - low > 1) & (at_low - at_high >= 2 * unit(_float(low)))

    def halve(bounds: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        low, high, at_low, at_high = bounds
        middle = low + (high - low) // 2
        found = measure(_float(middle))
        enough = found >= target
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, found, at_low),
            jnp.where(enough, at_high, found),
        )

    start = (jnp.int32(0), jnp.int32(_BITS_OF_ONE + 1), jnp.float32(jnp.inf), jnp.float32(0))
    return _float(lax.while_loop(unclear, halve, start)[0])


def _float(bits: Int32[Array, ""]) -> Float32[Array, ""]:
    return lax.bitcast_convert_type(bits, jnp.float32)
