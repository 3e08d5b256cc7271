"""How well a base model predicts a text: the decoder that serves, on whole windows, at the speed of bfloat16.

Tens of thousands of tokens in float32 take ten minutes on two cores. A number is the sum of two of bfloat16 but for its
last 8 bits, so a product of three products of these is that of float32 within 2^-16, and where a CPU has AMX many times
faster. What is in few bits is made float32 first: the numbers are those that the kernels compute with.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Float32, Int

from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.forward import TileBatch, hidden_states, logits
from openlora_jax.model.parameters import Parameters
from openlora_jax.progress import Progress
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex
from pallas_kernels.quantized import Matrix, QuantizedMatrix, dense
from pallas_kernels.registry import Ops, implementations

WINDOW = 512
"""Tokens that are scored by what precedes them in the same window."""
TILE = 64
BATCH = 4
"""Windows that are computed together."""


class Alone:
    """No adapter: see `forward.Adapters`."""

    def add(
        self,
        ops: Ops,
        modules: tuple[str, ...],
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        layer: LayerIndex,
        onto: Float[Array, "T L O"] | None = None,
    ) -> Float[Array, "T L O"]:
        return y if onto is None else onto + y

    def add_embedding(self, ops: Ops, tokens: Int[Array, "T L"], y: Float[Array, "T L D"]) -> Float[Array, "T L D"]:
        return y


def windows(tokens: Sequence[int], least: int) -> Int[np.ndarray, "X L"]:
    """The first whole windows of a text, with at least so many tokens to score; as many as there are."""
    count = BATCH * -(-least // (BATCH * (WINDOW - 1)))
    whole = min(count, len(tokens) // (BATCH * WINDOW) * BATCH)
    return np.array(tokens[: whole * WINDOW], np.int32).reshape(whole, WINDOW)


def perplexity(base: Path, kv_dtype: str, texts: Int[np.ndarray, "X L"], progress: Progress) -> float:
    """exp of the mean surprise of a converted base model, over all tokens but the first of each window."""
    config = BaseManifest.read(base).config
    parameters = jax.tree.map(
        lambda leaf: dense(leaf) if isinstance(leaf, QuantizedMatrix) else leaf,
        Parameters.read(base, config, "float32"),
        is_leaf=lambda leaf: isinstance(leaf, QuantizedMatrix),
    )
    plain = replace(config, quantization=None)
    found: list[Any] = []
    for first in range(0, len(texts), BATCH):
        progress("perplexity", first, len(texts))
        found.append(surprises(parameters, texts[first : first + BATCH], plain, kv_dtype))
    return math.exp(float(np.mean(found)))


@partial(jax.jit, static_argnums=(2, 3))
def surprises(
    parameters: Parameters, texts: Int[Array, "X L"], config: ModelConfig, kv_dtype: str
) -> Float32[Array, "X _"]:
    """-log p of every token but the first of each window."""
    count, width = texts.shape
    tiles = width // TILE
    start = jnp.tile(TILE * jnp.arange(tiles, dtype=jnp.int32), count)
    blocks = 1 + jnp.arange(count * tiles, dtype=jnp.int32).reshape(count, tiles)
    places = TileBatch(start, jnp.zeros_like(start), jnp.full_like(start, TILE), jnp.repeat(blocks, tiles, axis=0))
    kv = KvCache.create(
        layers=config.num_layers,
        blocks=1 + count * tiles,
        heads=config.num_kv_heads,
        block_tokens=TILE,
        width=config.head_dim,
        dtype=kv_dtype,
    )
    ops = replace(implementations("cpu"), linear=split_linear)
    x, _ = hidden_states(config, ops, parameters, texts.reshape(-1, TILE), places, Alone(), kv)

    def of_window(window: tuple[Float[Array, "L D"], Int[Array, "L"]]) -> Float32[Array, "_"]:
        scores = logits(config, ops, parameters, Alone(), window[0][:-1])
        chosen = jnp.take_along_axis(scores, window[1][1:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - chosen

    found: Array = lax.map(of_window, (x.reshape(count, width, -1), texts))
    return found


def split_linear(x: Float[Array, "T L I"], weights: tuple[Matrix, ...], layer: LayerIndex) -> Float[Array, "T L O"]:
    """y = x W_layer^T, as three products of bfloat16 with sums in float32."""
    rows = x.reshape(-1, x.shape[-1])
    y: Array = lax.switch(layer, [partial(_product, weight=weight) for weight in weights], rows)
    return y.reshape(*x.shape[:-1], -1)


def _product(x: Float[Array, "X I"], weight: Any) -> Float32[Array, "X O"]:
    (high, low), (weight_high, weight_low) = _halves(x), _halves(weight)
    parts = ((high, weight_high), (high, weight_low), (low, weight_high))
    return sum(  # type: ignore[return-value]
        lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32) for a, b in parts
    )


def _halves(x: Float[Array, "X I"]) -> tuple[Array, Array]:
    """Not by conversion there and back, which XLA leaves out."""
    high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)
