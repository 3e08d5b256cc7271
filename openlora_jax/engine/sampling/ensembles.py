"""Rows that choose their token together: each gets the combination of their logits before all else."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32, Int32

from openlora_jax.arrays import AnyArray
from openlora_jax.engine.plan import Tile
from openlora_jax.engine.request import MAX_ENSEMBLE

_LEAST = float(np.finfo(np.float32).tiny)
"""A probability whose logarithm is finite."""


class EnsembleBatch(NamedTuple):
    """One entry per row of a decode step; on the host as packed, on the device inside the step.

    Attributes:
        rows: the rows of its ensemble, the one that speaks first; itself where there are fewer, or none.
        weights: of these rows; 0 where there is none.
        joined: whether it is in an ensemble.
        mean_probs: whether that combines probabilities; else logits.
    """

    rows: Int32[AnyArray, "T A"]
    weights: Float32[AnyArray, "T A"]
    joined: Bool[AnyArray, "T"]
    mean_probs: Bool[AnyArray, "T"]

    @classmethod
    def pack(cls, tiles: Sequence[Tile], rows: int) -> "EnsembleBatch":
        """Of the tiles of a step, padded to `rows`."""
        batch = cls(
            rows=np.tile(np.arange(rows, dtype=np.int32)[:, None], (1, MAX_ENSEMBLE)),
            weights=np.zeros((rows, MAX_ENSEMBLE), np.float32),
            joined=np.zeros(rows, np.bool_),
            mean_probs=np.zeros(rows, np.bool_),
        )
        for row, tile in enumerate(tiles):
            if tile.ensemble is not None:
                size, first = len(tile.ensemble.weights), row - tile.member
                batch.rows[row, :size] = np.arange(first, first + size)
                batch.weights[row, :size] = tile.ensemble.weights
                batch.joined[row] = True
                batch.mean_probs[row] = tile.ensemble.method == "mean_probs"
        return batch


def combine(logits: Float32[Array, "T V"], batch: EnsembleBatch) -> Float32[Array, "T V"]:
    """For rows in ensembles, sum of weight * logit, or log of the sum of weight * probability; others stay as they are.

    All rows of an ensemble add up the same numbers in the same order. No other row's take part, as they may not be
    finite.
    """
    by_probability = jnp.asarray(batch.mean_probs)[:, None]
    values = jnp.where(by_probability, jax.nn.softmax(logits, axis=1), logits)
    total = jnp.zeros_like(logits)
    for member in range(batch.rows.shape[1]):
        share = jnp.take(values, batch.rows[:, member], axis=0, mode="clip")
        total += batch.weights[:, member, None] * share
    combined = jnp.where(by_probability, jnp.log(jnp.maximum(total, _LEAST)), total)
    return jnp.where(jnp.asarray(batch.joined)[:, None], combined, logits)
