"""One draw per row from unnormalised weights, with one uniform number each."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Int32

from openlora_jax.engine.sampling.batch import SamplingBatch

_BLOCK = 256


def uniforms(batch: SamplingBatch) -> Float32[Array, "T"]:
    """A number in [0, 1) per row that depends on its seed, sample index and position, and on nothing else."""

    def uniform(seed: Int32[Array, ""], sample: Int32[Array, ""], position: Int32[Array, ""]) -> Float32[Array, ""]:
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sample), position), dtype=jnp.float32)

    return jax.vmap(uniform)(jnp.asarray(batch.seed), jnp.asarray(batch.sample), jnp.asarray(batch.position))


def draw(weights: Float32[Array, "T V"], uniform: Float32[Array, "T"]) -> Int32[Array, "T"]:
    """The index at which the cumulative sum passes `uniform` times the total: first among blocks, then in a block."""
    rows, vocab = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    block, rest = _pass(sums, uniform * jnp.sum(sums, axis=-1))
    within, _ = _pass(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], rest)
    return block * _BLOCK + within


def _pass(weights: Float32[Array, "T W"], target: Float32[Array, "T"]) -> tuple[Int32[Array, "T"], Float32[Array, "T"]]:
    """The first index whose cumulative sum exceeds the target, and the target less the sum before that index.

    Never an index of weight 0: where rounding leaves the target at or above the total, the last one of positive weight.
    """
    sums = jnp.cumsum(weights, axis=-1)
    possible = weights > 0
    passed = possible & (sums > target[:, None])
    last = weights.shape[1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    index = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.take_along_axis(sums - weights, index[:, None], axis=-1)[:, 0]
    return index, target - before
