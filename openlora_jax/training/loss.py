"""What training makes small: how unlikely the model finds the completions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jaxtyping import Bool, Float, Float32, Int

from openlora_jax.model.config import ModelConfig
from openlora_jax.model.forward import TileBatch, hidden_states, logits
from openlora_jax.model.parameters import Parameters
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.data import Batch
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.registry import Ops


class _Example(NamedTuple):
    """One example's hidden states, the token after each, and whether that one is learned."""

    x: Float[Array, "L D"]
    target: Int[Array, "L"]
    learned: Bool[Array, "L"]


def completion_loss(
    adapter: TrainedAdapter, config: ModelConfig, ops: Ops, parameters: Parameters, batch: Batch
) -> Float32[Array, ""]:
    """-log p, the mean over the completions' tokens. An example is a tile; `ops` are those with gradients."""
    tokens, length, completion = map(jnp.asarray, batch)
    count, width = tokens.shape
    nothing = jnp.zeros_like(length)
    tiles = TileBatch(nothing, nothing, length, jnp.arange(count, dtype=jnp.int32)[:, None])
    kv = KvCache.create(
        layers=1,
        blocks=count,
        heads=config.num_kv_heads,
        block_tokens=width,
        width=config.head_dim,
        dtype=str(parameters.norm.dtype),
    )
    x, _ = hidden_states(config, ops, parameters, tokens, tiles, adapter, kv)
    position = jnp.arange(1, width + 1, dtype=jnp.int32)[None, :]
    learned = (position >= completion[:, None]) & (position < length[:, None])

    @jax.checkpoint  # one example's logits at a time, and none are kept
    def surprise(example: _Example) -> Float32[Array, ""]:
        scores = logits(config, ops, parameters, adapter, example.x)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, example.target)
        return jnp.sum(jnp.where(example.learned, each, 0))

    examples = _Example(x, jnp.roll(tokens, -1, axis=1), learned)
    return jnp.sum(lax.map(surprise, examples)) / jnp.sum(learned).astype(jnp.float32)
