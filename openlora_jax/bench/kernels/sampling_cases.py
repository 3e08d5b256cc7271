"""Cases of `top_k` and `threshold`, on the logits of a decode step."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.bench.kernels.case import FEW_CALLS, Case, Step, normal
from openlora_jax.bench.kernels.workload import Workload
from openlora_jax.engine.sampling.sampler import HEAD
from pallas_kernels.layers import LayerIndex, unrolled
from pallas_kernels.registry import Ops
from pallas_kernels.threshold import reference as threshold_reference
from pallas_kernels.threshold.api import Threshold
from pallas_kernels.top_k import reference as top_k_reference
from pallas_kernels.top_k.api import TopK

SPREAD = 3.0
"""Standard deviation of the logits."""
TOP_K, NUCLEUS = 4, 256
"""Top-k leaves one of so many tokens, and top-p one of so many."""

ThresholdOperands = tuple[Array, Array, Array]


def top_k_case(workload: Workload, ops: Ops) -> Case:
    """As many of the best as the sampler looks at."""
    rows, width = workload.rows, workload.model.vocab_size
    head = min(HEAD, width)
    logits = tuple(normal(seed, (rows, width), "float32", SPREAD) for seed in range(FEW_CALLS))
    return Case(
        op="top_k",
        operands=(logits,),
        carry=(jnp.zeros((rows, head), jnp.float32), jnp.zeros((rows, head), jnp.int32)),
        calls=FEW_CALLS,
        over_layers=unrolled,
        reference=_top_k_step(top_k_reference.top_k),
        steps={
            ops.chosen["top_k"].name: _top_k_step(ops.top_k),
            "sort": _top_k_step(top_k_reference.top_k),
        },
        nbytes=logits[0].nbytes,
        footprint=FEW_CALLS * logits[0].nbytes,
        operations=0,
    )


def threshold_case(workload: Workload, ops: Ops) -> Case:
    """Rows that the best few do not settle. Counts what is left, as any threshold will do that leaves it."""
    rows, width = workload.rows, workload.model.vocab_size
    operands = tuple(_cut(np.asarray(normal(seed, (rows, width), "float32", SPREAD))) for seed in range(FEW_CALLS))
    nbytes = operands[0][0].nbytes
    return Case(
        op="threshold",
        operands=(operands,),
        carry=jnp.zeros(rows, jnp.float32),
        calls=FEW_CALLS,
        over_layers=unrolled,
        reference=_threshold_step(threshold_reference.threshold),
        steps={
            ops.chosen["threshold"].name: _threshold_step(ops.threshold),
            "sort": _threshold_step(threshold_reference.threshold),
        },
        nbytes=2 * nbytes,
        footprint=FEW_CALLS * nbytes,
        operations=0,
    )


def _cut(logits: np.ndarray) -> ThresholdOperands:
    """Weights, top-k and top-p, whose edges lie amid a token's share of the sum, where rounding moves nothing."""
    rows, width = logits.shape
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    ordered = -np.sort(-weights.astype(np.float64), axis=1)
    top_k, nucleus = -(-width // TOP_K), -(-width // NUCLEUS)
    sums = np.cumsum(ordered, axis=1)
    top_p = (sums[:, nucleus - 1] - ordered[:, nucleus - 1] / 2) / sums[:, top_k - 1]
    return jnp.asarray(weights), jnp.full(rows, top_k, jnp.int32), jnp.asarray(top_p, jnp.float32)


def _top_k_step(top_k: TopK) -> Step:
    def step(operands: tuple[Array, ...], layer: LayerIndex, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        values, columns = top_k(operands[int(layer)], carry[0].shape[1])
        return carry[0] + values, carry[1] + columns

    return step


def _threshold_step(threshold: Threshold) -> Step:
    def step(operands: tuple[ThresholdOperands, ...], layer: LayerIndex, left: Array) -> Array:
        weights, top_k, top_p = operands[int(layer)]
        least = threshold(weights, top_k, top_p, jnp.zeros(top_k.shape, jnp.bool_))
        return left + jnp.sum(weights >= least[:, None], axis=1, dtype=jnp.float32)

    return step
