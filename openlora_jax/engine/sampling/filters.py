"""Top-k, top-p and min-p without a sort: the least that a row keeps.

A row's weights are its probabilities over that of its most likely token, so the largest is 1. Each filter keeps the
tokens at or above some weight, hence all of them together those above the greatest of three. Where that lies within
the head, the few most likely tokens, it is read off there; else it is searched for among the weights.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float32, Int32

from openlora_jax.engine.sampling.batch import SamplingBatch
from pallas_kernels.registry import Ops


class Cut(NamedTuple):
    """What each row keeps: tokens whose logit and whose weight are both no less than these."""

    logit: Float32[Array, "T"]
    weight: Float32[Array, "T"]


def cut(
    ops: Ops,
    weights: Float32[Array, "T V"],
    head: Float32[Array, "T Z"],
    scale: Float32[Array, "T 1"],
    batch: SamplingBatch,
) -> Cut:
    """Top-k, then top-p of what that left, then min-p.

    Tokens as likely as the last one kept are kept as well, so at least the best token is.

    Args:
        ops: of the backend.
        weights: exp((logit - best logit) / scale).
        head: the Z greatest logits, best first.
        scale: the temperature.
        batch: the filters' parameters; top_k 0 and top_p 1 keep all.
    """
    top_k = jnp.where(batch.top_k == 0, weights.shape[1], batch.top_k)
    top_p = jnp.asarray(batch.top_p)
    logit, settled = _cut_in_head(weights, head, scale, top_k, top_p)
    none = jnp.zeros_like(top_p)
    weight = ops.shortcut(jnp.all(settled), lambda: none, lambda: ops.threshold(weights, top_k, top_p, settled))
    return Cut(jnp.where(settled, logit, -jnp.inf), jnp.maximum(weight, batch.min_p))


def _cut_in_head(
    weights: Float32[Array, "T V"],
    head: Float32[Array, "T Z"],
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
