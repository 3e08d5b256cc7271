"""A step through the decoder: tokens of many sequences in, last hidden states out, keys and values cached."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from openlora_jax.arrays import AnyArray
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.rope import rotate, rotation
from pallas_kernels.kv_cache import KvCache
from pallas_kernels.lora.api import WorkList
from pallas_kernels.registry import Ops


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AdapterBatch:
    """This step's adapters: the pools they lie in and the work on them, by module.

    `add` is the adapters' whole part in a step: the base computes y, the adapters add theirs.
    """

    pools: Mapping[str, tuple[Float[Array, "Y P R I"], Float[Array, "Y P R O"]]]
    work: Mapping[str, WorkList]

    def add(
        self, ops: Ops, module: str, x: Float[Array, "T L I"], y: Float[Array, "T L O"], layer: Int[Array, ""]
    ) -> Float[Array, "T L O"]:
        """The base output of a module with its adapters' added."""
        return ops.lora(x, y, *self.pools[module], layer, self.work[module])

    def add_embedding(self, ops: Ops, tokens: Int[Array, "T L"], y: Float[Array, "T L D"]) -> Float[Array, "T L D"]:
        return ops.embedding_lora(tokens, y, *self.pools["embed_tokens"], self.work["embed_tokens"])


class TileBatch(NamedTuple):
    """Where the tiles of a step are; arrays of the host as packed, of the device inside a step.

    Attributes:
        start: position of each tile's first token in its sequence.
        length: its number of tokens; 0 is padding.
        table: the KV blocks of its sequence.
    """

    start: Int[AnyArray, "T"]
    length: Int[AnyArray, "T"]
    table: Int[AnyArray, "T C"]


def hidden_states(
    config: ModelConfig,
    ops: Ops,
    parameters: Parameters,
    tokens: Int[Array, "T L"],
    tiles: TileBatch,
    adapters: AdapterBatch,
    kv: KvCache,
) -> tuple[Float[Array, "T L D"], KvCache]:
    """Runs every layer over the tiles; returns the hidden states before the last norm, and the cache."""
    positions = jnp.asarray(tiles.start)[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    turn = rotation(config, positions)
    x = adapters.add_embedding(ops, tokens, parameters.embed[tokens])

    def layer_step(layer: Array, carry: tuple[Array, KvCache]) -> tuple[Array, KvCache]:
        x, kv = carry
        attended, kv = _attention(config, ops, parameters, layer, x, turn, tiles, adapters, kv)
        x = x + attended
        return x + _mlp(config, ops, parameters, layer, x, adapters), kv

    x, kv = lax.fori_loop(0, config.num_layers, layer_step, (x, kv))
    return x, kv


def logits(
    config: ModelConfig, ops: Ops, parameters: Parameters, adapters: AdapterBatch, x: Float[Array, "T D"]
) -> Float[Array, "T V"]:
    """The head on one hidden state a tile, in float32."""
    rows = _rms_norm(x, parameters.norm, config.rms_norm_eps)[:, None]
    first = jnp.int32(0)
    return adapters.add(ops, "lm_head", rows, ops.linear(rows, (parameters.head,), first), first)[:, 0].astype(
        jnp.float32
    )


def _attention(
    config: ModelConfig,
    ops: Ops,
    parameters: Parameters,
    layer: Int[Array, ""],
    x: Float[Array, "T L D"],
    turn: tuple[Float[Array, "T L 1 J"], ...],
    tiles: TileBatch,
    adapters: AdapterBatch,
    kv: KvCache,
) -> tuple[Float[Array, "T L D"], KvCache]:
    normed = _rms_norm(x, parameters.attention_norm[layer], config.rms_norm_eps)
    joined = ops.linear(normed, parameters.qkv, layer)
    if parameters.qkv_bias is not None:
        joined = joined + parameters.qkv_bias[layer][None, None, :]
    parts = jnp.split(joined, (config.q_size, config.q_size + config.kv_size), axis=-1)
    q, k, v = (
        adapters.add(ops, module, normed, part, layer).reshape(*x.shape[:2], -1, config.head_dim)
        for module, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True)
    )
    if parameters.q_norm is not None and parameters.k_norm is not None:
        q = _rms_norm(q, parameters.q_norm[layer], config.rms_norm_eps)
        k = _rms_norm(k, parameters.k_norm[layer], config.rms_norm_eps)
    start, length, table = map(jnp.asarray, tiles)
    kv = ops.kv_write(kv, rotate(k, turn), v, layer, table, start)
    heads = ops.paged_attention(rotate(q, turn), kv, layer, table, start, length)
    flat = heads.reshape(*x.shape[:2], -1)
    return adapters.add(ops, "o_proj", flat, ops.linear(flat, parameters.o, layer), layer), kv


def _mlp(
    config: ModelConfig,
    ops: Ops,
    parameters: Parameters,
    layer: Int[Array, ""],
    x: Float[Array, "T L D"],
    adapters: AdapterBatch,
) -> Float[Array, "T L D"]:
    normed = _rms_norm(x, parameters.mlp_norm[layer], config.rms_norm_eps)
    gate, up = jnp.split(ops.linear(normed, parameters.gate_up, layer), 2, axis=-1)
    gate = adapters.add(ops, "gate_proj", normed, gate, layer)
    up = adapters.add(ops, "up_proj", normed, up, layer)
    inner = jax.nn.silu(gate) * up
    return adapters.add(ops, "down_proj", inner, ops.linear(inner, parameters.down, layer), layer)


def _rms_norm(x: Float[Array, "*N W"], scale: Float[Array, "W"], epsilon: float) -> Float[Array, "*N W"]:
    wide = x.astype(jnp.float32)
    normed = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return normed.astype(x.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)
