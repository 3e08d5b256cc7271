"""Top-k, top-p and min-p without a sort: how far below its best logit a row still keeps tokens.

With distance = best logit - logit >= 0, each filter keeps the tokens up to some distance, hence all of them together
the least of three. Where that distance lies within the few best tokens it is read off them; else it is found bit by
bit: the bits of non-negative floats order as integers do.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32

from openlora_jax.engine.sampling.batch import SamplingBatch

_BITS_OF_INFINITY = 0x7F800000


def reach(
    distances: Float32[Array, "T V"],
    weights: Float32[Array, "T V"],
    head: Float32[Array, "T K"],
    head_weights: Float32[Array, "T K"],
    batch: SamplingBatch,
) -> Float32[Array, "T"]:
    """The greatest distance that each row keeps: top-k, then top-p of what that left, then min-p.

    Tokens as likely as the last one kept are kept as well, so at least the best token is.

    Args:
        distances: of each token below the row's best.
        weights: exp(-distance / temperature), what a token's probability is proportional to.
        head: the K least distances, in order.
        head_weights: their weights.
        batch: the filters' parameters; top_k 0 and top_p 1 keep all.
    """
    top_k = jnp.where(batch.top_k == 0, weights.shape[1], batch.top_k)
    top_p = jnp.asarray(batch.top_p)
    found, settled = _reach_in_head(weights, head, head_weights, top_k, top_p)
    kept: Array = lax.cond(
        jnp.all(settled), lambda: found, lambda: _reach_by_bits(distances, weights, top_k, top_p, found, settled)
    )
    return jnp.minimum(kept, -jnp.log(batch.min_p) * batch.temperature)


def _reach_in_head(
    weights: Float32[Array, "T V"],
    head: Float32[Array, "T K"],
    head_weights: Float32[Array, "T K"],
    top_k: Int32[Array, "T"],
    top_p: Float32[Array, "T"],
) -> tuple[Float32[Array, "T"], Bool[Array, "T"]]:
    """What top-k and top-p keep, and whether the head was enough to tell."""
    size, furthest = head.shape[1], head[:, -1]
    all_k = top_k >= weights.shape[1]
    kth = jnp.take_along_axis(head, jnp.minimum(top_k, size)[:, None] - 1, axis=1)[:, 0]
    kth = jnp.where(all_k, jnp.inf, kth)
    after_k = jnp.where(head <= kth[:, None], head_weights, 0)
    mass = jnp.where(all_k, jnp.sum(weights, axis=1), jnp.sum(after_k, axis=1))
    reached = jnp.cumsum(after_k, axis=1) >= (top_p * mass)[:, None]
    nucleus = jnp.take_along_axis(head, jnp.argmax(reached, axis=1)[:, None], axis=1)[:, 0]
    # A token as far as the head's furthest may have more of its like outside, so their mass is not known here.
    inside = (all_k | (kth < furthest)) & jnp.any(reached, axis=1)
    return jnp.where(top_p < 1, nucleus, kth), jnp.where(top_p < 1, inside, all_k | (top_k <= size))


def _reach_by_bits(
    distances: Float32[Array, "T V"],
    weights: Float32[Array, "T V"],
    top_k: Int32[Array, "T"],
    top_p: Float32[Array, "T"],
    found: Float32[Array, "T"],
    settled: Bool[Array, "T"],
) -> Float32[Array, "T"]:
    """The same from whole rows, one by one, so that only those pay that are not settled."""

    def search(row: Array, weight: Array, k: Array, p: Array) -> Array:
        everything = jnp.float32(jnp.inf)
        kth = lax.cond(k < row.size, lambda: _least_reaching(row, jnp.ones_like(row), k), lambda: everything)
        mass = jnp.sum(jnp.where(row <= kth, weight, 0))
        nucleus = lax.cond(p < 1, lambda: _least_reaching(row, weight, p * mass), lambda: everything)
        return jnp.minimum(kth, nucleus)

    def one_row(arguments: tuple[Array, Array, Array, Array, Array, Array]) -> Array:
        *searched, known, done = arguments
        result: Array = lax.cond(done, lambda: known, lambda: search(*searched))
        return result

    rows: Array = lax.map(one_row, (distances, weights, top_k, top_p, found, settled))
    return rows


def _least_reaching(row: Float32[Array, "V"], measure: Float32[Array, "V"], target: Array) -> Float32[Array, ""]:
    """The least t at which the `measure` of all distances up to t reaches the target; infinity where none does."""

    def set_bit(i: Array, bits: Array) -> Array:
        candidate = bits | (jnp.int32(1) << (30 - i))
        short = jnp.sum(jnp.where(row < _float(candidate), measure, 0)) < target.astype(jnp.float32)
        return jnp.where(short & (candidate <= _BITS_OF_INFINITY), candidate, bits)

    return _float(lax.fori_loop(0, 31, set_bit, jnp.int32(0)))


def _float(bits: Int32[Array, ""]) -> Float32[Array, ""]:
    return lax.bitcast_convert_type(bits, jnp.float32)
