"""From a step's logits to its tokens."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Int32

from openlora_jax.engine.sampling.batch import SamplingBatch
from openlora_jax.engine.sampling.draw import draw, uniforms
from openlora_jax.engine.sampling.ensembles import EnsembleBatch, combine
from openlora_jax.engine.sampling.filters import cut
from openlora_jax.engine.sampling.logits import adjust, adjusted_rows
from openlora_jax.engine.sampling.state import SamplerState
from openlora_jax.engine.sampling_params import MAX_LOGPROBS
from pallas_kernels.registry import Ops

HEAD = 64
"""Most likely tokens looked at first; filters that keep no more than these never search the whole vocabulary."""

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would only overflow."""


class Sampled(NamedTuple):
    """A step's tokens. Log-probabilities are the model's or the ensemble's, before penalties, temperature and filters.

    They are computed when some row of the batch reports them or is not greedy, and else mean nothing, but that they are
    not finite where the best logit is not.

    Attributes:
        token: chosen id of each row.
        logprob: of that id.
        top_ids: the most likely ids, best first; equal ones by id.
        top_logprobs: of those ids.
    """

    token: Int32[Array, "T"]
    logprob: Float32[Array, "T"]
    top_ids: Int32[Array, "T Z"]
    top_logprobs: Float32[Array, "T Z"]


def sample(
    ops: Ops,
    state: SamplerState,
    logits: Float32[Array, "T V"],
    batch: SamplingBatch,
    ensembles: EnsembleBatch | None = None,
) -> tuple[SamplerState, Sampled]:
    """Chooses a token per row, and notes it in the row's slot.

    In this order, as transformers and vLLM do: repetition, presence and frequency penalties, logit bias, forbidden
    tokens, temperature, top-k, top-p (of the mass that top-k left), min-p, and one draw from what is left. A row of
    temperature 0 takes the most likely token after the forbidden ones; equal ones by id. A batch of such rows alone,
    without penalties, ensembles and anything to report, pays for two passes over the logits only.

    Rows of an ensemble take the combination of their logits for their own, and the token of the first of them; they are
    to sample alike.
    """
    plain = ~jnp.any(adjusted_rows(batch, logits.shape[1])) & ~jnp.any(batch.temperature >= GREEDY_BELOW)
    if ensembles is not None:
        plain &= ~jnp.any(ensembles.joined)
    sampled = ops.shortcut(
        plain & ~jnp.any(batch.reports),
        lambda: _greedy(logits),
        lambda: _sampled(ops, state, _combined(ops, logits, ensembles), batch, ensembles),
    )
    state = state._replace(
        last_token=state.last_token.at[batch.slot].set(sampled.token),
        output_counts=state.output_counts.at[batch.slot, sampled.token].add(1),
    )
    return state, sampled


def _greedy(logits: Float32[Array, "T V"]) -> Sampled:
    """The most likely tokens and nothing else. An argmax in one pass does not vectorise on a CPU; these two do."""
    rows, vocab = logits.shape
    best = jnp.max(logits, axis=1)
    ids = jnp.arange(vocab, dtype=jnp.int32)[None, :]
    token = jnp.min(jnp.where(logits == best[:, None], ids, vocab), axis=1)
    head = min(MAX_LOGPROBS, vocab)
    return Sampled(
        token=jnp.minimum(token, vocab - 1),
        logprob=best * 0,
        top_ids=jnp.zeros((rows, head), jnp.int32),
        top_logprobs=jnp.zeros((rows, head), jnp.float32),
    )


def _combined(ops: Ops, logits: Float32[Array, "T V"], ensembles: EnsembleBatch | None) -> Float32[Array, "T V"]:
    if ensembles is None:
        return logits
    return ops.shortcut(~jnp.any(ensembles.joined), lambda: logits, lambda: combine(logits, ensembles))


def _sampled(
    ops: Ops,
    state: SamplerState,
    logits: Float32[Array, "T V"],
    batch: SamplingBatch,
    ensembles: EnsembleBatch | None,
) -> Sampled:
    head, head_ids = ops.top_k(logits, min(HEAD, logits.shape[1]))
    normaliser = head[:, 0] + jnp.log(jnp.sum(jnp.exp(logits - head[:, :1]), axis=1))
    token = _choose(ops, state, logits, batch, head, head_ids)
    if ensembles is not None:
        token = token[ensembles.rows[:, 0]]
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return Sampled(
        token=token,
        logprob=chosen - normaliser,
        top_ids=head_ids[:, :MAX_LOGPROBS],
        top_logprobs=head[:, :MAX_LOGPROBS] - normaliser[:, None],
    )


def _choose(
    ops: Ops,
    state: SamplerState,
    logits: Float32[Array, "T V"],
    batch: SamplingBatch,
    head: Float32[Array, "T Z"],
    head_ids: Int32[Array, "T Z"],
) -> Int32[Array, "T"]:
    """The token of each row."""

    def adjusted() -> tuple[Float32[Array, "T V"], Float32[Array, "T Z"], Int32[Array, "T Z"]]:
        changed = adjust(state, logits, batch)
        return changed, *ops.top_k(changed, head.shape[1])

    some = jnp.any(adjusted_rows(batch, logits.shape[1]))
    logits, head, head_ids = ops.shortcut(~some, lambda: (logits, head, head_ids), adjusted)
    random = batch.temperature >= GREEDY_BELOW
    drawn = ops.shortcut(~jnp.any(random), lambda: head_ids[:, 0], lambda: _draw(ops, logits, head, batch))
    return jnp.where(random, drawn, head_ids[:, 0])


def _draw(
    ops: Ops, logits: Float32[Array, "T V"], head: Float32[Array, "T Z"], batch: SamplingBatch
) -> Int32[Array, "T"]:
    scale = jnp.maximum(batch.temperature, GREEDY_BELOW)[:, None]
    weights = jnp.exp((logits - head[:, :1]) / scale)
    least = cut(ops, weights, head, scale, batch)
    kept = (logits >= least.logit[:, None]) & (weights >= least.weight[:, None])
    return draw(jnp.where(kept, weights, 0), uniforms(batch))
