"""What changes a row's logits before anything is drawn: penalties, bias, forbidden tokens."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float32

from openlora_jax.engine.sampling.batch import SamplingBatch
from openlora_jax.engine.sampling.state import SamplerState


def adjusted_rows(batch: SamplingBatch, vocab: int) -> Bool[Array, "T"]:
    """Which rows `adjust` changes at all."""
    return (
        (batch.repetition_penalty != 1)
        | (batch.presence_penalty != 0)
        | (batch.frequency_penalty != 0)
        | batch.biased
        | jnp.any(batch.forbidden < vocab, axis=-1)
    )


def adjust(state: SamplerState, logits: Float32[Array, "T V"], batch: SamplingBatch) -> Float32[Array, "T V"]:
    """Penalties, then bias, then forbidden tokens; the rows of a batch that ask for none come out as they went in.

    Repetition as in CTRL (https://arxiv.org/abs/1909.05858), over prompt and output; presence and frequency as in
    the OpenAI API, over the output alone. A slot is read only for rows that use it: others may hold anything.
    """
    counts = state.output_counts[batch.slot]
    seen = (counts > 0) | state.prompt_seen[batch.slot]
    repetition, presence, frequency = (
        column[:, None] for column in (batch.repetition_penalty, batch.presence_penalty, batch.frequency_penalty)
    )
    logits = jnp.where(seen, jnp.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits -= presence * (counts > 0).astype(jnp.float32) + frequency * counts.astype(jnp.float32)
    logits += jnp.where(batch.biased[:, None], state.bias[batch.slot], jnp.float32(0))
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, batch.forbidden].set(-jnp.inf, mode="drop")
