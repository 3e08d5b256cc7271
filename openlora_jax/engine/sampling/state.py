"""What the sampler remembers of each sequence, on the device."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32, Int32


class SamplerState(NamedTuple):
    """One row per slot; the last slot is scratch, written by padding rows and never read for a sequence.

    Attributes:
        last_token: the token that the next decode step feeds.
        output_counts: how often each token was sampled; valid only in slots that were prepared.
        prompt_seen: whether each token is in the prompt; likewise.
        bias: what is added to each logit; likewise.
    """

    last_token: Int32[Array, "U"]
    output_counts: Int32[Array, "U V"]
    prompt_seen: Bool[Array, "U V"]
    bias: Float32[Array, "U V"]

    @classmethod
    def create(cls, slots: int, vocab: int) -> "SamplerState":
        """The state of `slots` slots, scratch included: `max_rows + 1`."""
        return cls(
            last_token=jnp.zeros(slots, jnp.int32),
            output_counts=jnp.zeros((slots, vocab), jnp.int32),
            prompt_seen=jnp.zeros((slots, vocab), jnp.bool_),
            bias=jnp.zeros((slots, vocab), jnp.float32),
        )


@partial(jax.jit, donate_argnames="state")
def prepare_slot(
    state: SamplerState,
    slot: Int32[Array, ""],
    last_token: Int32[Array, ""],
    prompt_seen: Bool[Array, "V"],
    output_counts: Int32[Array, "V"],
    bias: Float32[Array, "V"],
) -> SamplerState:
    """Writes the rows of a slot's new occupant; needed only if they are read before a step writes them.

    That is, the last token where no chunk computes it, the others if its `RowSampling.uses_slot`.
    """
    return state._replace(
        last_token=state.last_token.at[slot].set(last_token),
        prompt_seen=state.prompt_seen.at[slot].set(prompt_seen),
        output_counts=state.output_counts.at[slot].set(output_counts),
        bias=state.bias.at[slot].set(bias),
    )


def slot_rows(
    prompt_ids: Sequence[int], output_ids: Sequence[int], logit_bias: Mapping[int, float], vocab: int
) -> tuple[Bool[np.ndarray, "V"], Int32[np.ndarray, "V"], Float32[np.ndarray, "V"]]:
    """The last three arguments of `prepare_slot` for one sequence; all ids are below `vocab`."""
    prompt_seen = np.zeros(vocab, np.bool_)
    prompt_seen[list(prompt_ids)] = True
    output_counts = np.bincount(np.asarray(output_ids, np.int64), minlength=vocab).astype(np.int32)
    bias = np.zeros(vocab, np.float32)
    bias[list(logit_bias)] = list(logit_bias.values())
    return prompt_seen, output_counts, bias
