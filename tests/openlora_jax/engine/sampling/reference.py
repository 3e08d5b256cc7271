"""What sampling should do, in float64 and with a sort: the oracle of the tests beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int

from openlora_jax.engine.row_sampling import RowSampling


def adjusted(
    logits: Sequence[float],
    row: RowSampling,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    bias: Mapping[int, float] | None = None,
) -> Float64[np.ndarray, "V"]:
    """Penalties, bias and forbidden tokens, one token after the other."""
    result = np.array(logits, np.float64)
    for token in set(prompt) | set(output):
        factor = row.repetition_penalty
        result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
    for token, count in Counter(output).items():
        result[token] -= row.presence_penalty + row.frequency_penalty * count
    for token, value in (bias or {}).items():
        result[token] += value
    result[list(row.forbidden)] = -np.inf
    return result


def distribution(
    logits: Float64[np.ndarray, "V"], row: RowSampling, top_p: float | None = None
) -> Float64[np.ndarray, "V"]:
    """The probabilities after temperature, top-k, top-p and min-p; ties with the last kept token are kept."""
    weights = np.exp((logits - logits.max()) / row.temperature)
    order = np.argsort(-weights, kind="stable")
    if 0 < row.top_k < len(weights):
        weights = np.where(logits >= logits[order[row.top_k - 1]], weights, 0)
    p = row.top_p if top_p is None else top_p
    if p < 1:
        mass = np.cumsum(weights[order])
        last = order[min(int(np.argmax(mass >= p * mass[-1])), len(order) - 1)]
        weights = np.where(logits >= logits[last], weights, 0)
    weights = np.where(weights >= row.min_p * (1 - 1e-6), weights, 0)
    probabilities: Float64[np.ndarray, "V"] = weights / weights.sum()
    return probabilities


def interval(probabilities: Float64[np.ndarray, "V"], token: Int[np.ndarray, ""] | int) -> tuple[float, float]:
    """Where in [0, 1) the uniform number lies that draws this token."""
    sums = np.cumsum(probabilities)
    return float(sums[token] - probabilities[token]), float(sums[token])
