"""A step through the decoder: tokens of many sequences in, last hidden states out, keys and values cached."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from openlora_jax.adapters.modules import POOLS
from openlora_jax.arrays import AnyArray
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.rope import rotate, rotation
from pallas_kernels.int4_lora.api import Int4Pages
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.quantized import looked_up
from pallas_kernels.registry import Ops


@runtime_checkable
class Adapters(Protocol):
    """The adapters' whole part in a step: the base computes y, the adapters add theirs."""

    def add(
        self,
        ops: Ops,
        modules: tuple[str, ...],
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        layer: LayerIndex,
        onto: Float[Array, "T L O"] | None = None,
    ) -> Float[Array, "T L O"]:
        """The joined base output of modules that read x, with what it is to be added `onto` and their adapters' part.

        That is: what the adapters scale is the output alone.
        """

    def add_embedding(self, ops: Ops, tokens: Int[Array, "T L"], y: Float[Array, "T L D"]) -> Float[Array, "T L D"]:
        """The same for the embedding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AdapterBatch:
    """The adapters that a step of the engine serves: the pools they lie in and the work on them, by module.

    Attributes:
        pools: the parts of every pool's pages, see `POOLS`.
        work: the items of all pools, in the order of `POOLS`.
    """

    pools: Mapping[str, tuple[Array, ...]]
    work: WorkList

    def add(
        self,
        ops: Ops,
        modules: tuple[str, ...],
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        layer: LayerIndex,
        onto: Float[Array, "T L O"] | None = None,
    ) -> Float[Array, "T L O"]:
        if modules == ("lm_head",) and "lm_head.saved" in self.pools:
            y = ops.saved_linear(x, y, self.pools["lm_head.saved"][0], self.work, POOLS.index("lm_head.saved"))
        y = self._changed(ops, modules, y, layer)
        rank_pages: tuple[Any, ...] = tuple(self.pools[module] for module in modules)
        y = ops.lora(x, y if onto is None else onto + y, rank_pages, layer, self.work, _rows(modules))
        names = tuple(f"{module}.int4" for module in modules)
        if names[0] not in self.pools:
            return y
        packed = tuple(Int4Pages(*self.pools[name]) for name in names)
        return ops.int4_lora(x, y, packed, layer, self.work, _rows(names))

    def add_embedding(self, ops: Ops, tokens: Int[Array, "T L"], y: Float[Array, "T L D"]) -> Float[Array, "T L D"]:
        if "embed_tokens.saved" in self.pools:
            saved = self.pools["embed_tokens.saved"][0]
            y = ops.saved_embedding(tokens, y, saved, self.work, POOLS.index("embed_tokens.saved"))
        y = self._changed(ops, ("embed_tokens",), y, np.asarray(0, np.int32))
        rank_pages: Any = self.pools["embed_tokens"]
        return ops.embedding_lora(tokens, y, rank_pages, self.work, POOLS.index("embed_tokens"))

    def _changed(
        self, ops: Ops, modules: tuple[str, ...], y: Float[Array, "T L O"], layer: LayerIndex
    ) -> Float[Array, "T L O"]:
        """By gains and biases; where there are no vector pages, there is no work for them in the program."""
        names = tuple(f"{module}.vector" for module in modules)
        if names[0] not in self.pools:
            return y
        return ops.affine(y, tuple(self.pools[name][0] for name in names), layer, self.work, _rows(names))


def _rows(pools: tuple[str, ...]) -> tuple[int, ...]:
    """Of the work list."""
    return tuple(map(POOLS.index, pools))


class TileBatch(NamedTuple):
    """Where the tiles of a step are; arrays of the host as packed, of the device inside a step.

    Attributes:
        start: position of each tile's first column in its sequence.
        first: the column of its first token: the columns before it, and their keys and values, are another tile's.
        length: columns up to its last token; 0 is padding.
        table: the KV blocks of its sequence.
    """

    start: Int[AnyArray, "T"]
    first: Int[AnyArray, "T"]
    length: Int[AnyArray, "T"]
    table: Int[AnyArray, "T C"]


def hidden_states(
    config: ModelConfig,
    ops: Ops,
    parameters: Parameters,
    tokens: Int[Array, "T L"],
    tiles: TileBatch,
    adapters: Adapters,
    kv: KvCache,
) -> tuple[Float[Array, "T L D"], KvCache]:
    """Runs every layer over the tiles; returns the hidden states before the last norm, and the cache."""
    positions = jnp.asarray(tiles.start)[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    turn = rotation(config, positions)
    embedded = looked_up(parameters.embed, tokens, parameters.norm.dtype)
    x = adapters.add_embedding(ops, tokens, embedded)

    def layer_step(layer: LayerIndex, carry: tuple[Array, KvCache]) -> tuple[Array, KvCache]:
        x, kv = carry
        x, kv = _attention(config, ops, parameters, layer, x, turn, tiles, adapters, kv)
        return _mlp(config, ops, parameters, layer, x, adapters), kv

    return ops.over_layers(config.num_layers, layer_step, (x, kv))


def logits(
    config: ModelConfig, ops: Ops, parameters: Parameters, adapters: Adapters, x: Float[Array, "T D"]
) -> Float[Array, "T V"]:
    """The head on one hidden state a tile, in float32."""
    rows = _rms_norm(x, parameters.norm, config.rms_norm_eps)[:, None]
    only = np.asarray(0, np.int32)
    scores = adapters.add(ops, ("lm_head",), rows, ops.linear(rows, (parameters.head,), only), only)
    return scores[:, 0].astype(jnp.float32)


def _attention(
    config: ModelConfig,
    ops: Ops,
    parameters: Parameters,
    layer: LayerIndex,
    x: Float[Array, "T L D"],
    turn: tuple[Float[Array, "T L 1 J"], ...],
    tiles: TileBatch,
    adapters: Adapters,
    kv: KvCache,
) -> tuple[Float[Array, "T L D"], KvCache]:
    """What x becomes. Here and below adapters add to the sum of x and the product, which XLA computes in one launch."""
    normed = _rms_norm(x, parameters.attention_norm[layer], config.rms_norm_eps)
    joined = ops.linear(normed, parameters.qkv, layer)
    if parameters.qkv_bias is not None:
        joined = joined + parameters.qkv_bias[layer][None, None, :]
    joined = adapters.add(ops, ("q_proj", "k_proj", "v_proj"), normed, joined, layer)
    parts = jnp.split(joined, (config.q_size, config.q_size + config.kv_size), axis=-1)
    q, k, v = (part.reshape(*x.shape[:2], -1, config.head_dim) for part in parts)
    if parameters.q_norm is not None and parameters.k_norm is not None:
        q = _rms_norm(q, parameters.q_norm[layer], config.rms_norm_eps)
        k = _rms_norm(k, parameters.k_norm[layer], config.rms_norm_eps)
    start, first, length, table = map(jnp.asarray, tiles)
    kv = ops.kv_write(kv, rotate(k, turn), v, layer, table, start, first, length)
    heads = ops.paged_attention(rotate(q, turn), kv, layer, table, start, length)
    flat = heads.reshape(*x.shape[:2], -1)
    return adapters.add(ops, ("o_proj",), flat, ops.linear(flat, parameters.o, layer), layer, onto=x), kv


def _mlp(
    config: ModelConfig,
    ops: Ops,
    parameters: Parameters,
    layer: LayerIndex,
    x: Float[Array, "T L D"],
    adapters: Adapters,
) -> Float[Array, "T L D"]:
    normed = _rms_norm(x, parameters.mlp_norm[layer], config.rms_norm_eps)
    joined = ops.linear(normed, parameters.gate_up, layer)
    gate, up = jnp.split(adapters.add(ops, ("gate_proj", "up_proj"), normed, joined, layer), 2, axis=-1)
    inner = jax.nn.silu(gate) * up
    return adapters.add(ops, ("down_proj",), inner, ops.linear(inner, parameters.down, layer), layer, onto=x)


def _rms_norm(x: Float[Array, "*X W"], scale: Float[Array, "W"], epsilon: float) -> Float[Array, "*X W"]:
    wide = x.astype(jnp.float32)
    normed = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return normed.astype(x.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)
