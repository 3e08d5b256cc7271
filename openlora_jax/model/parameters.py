"""A model's weights in the form that a step takes: flat leaves, matrices one array a layer, vectors stacked."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from openlora_jax.config import Dtype
from openlora_jax.model.checkpoint import read_in_groups
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.transformer import Norm, Transformer
from openlora_jax.model.weights import weight_table, with_values
from pallas_kernels.quantized import QuantizedMatrix
from pallas_kernels.quantized_linear.layers import QuantizedLayers, separate

LayerMatrices = tuple[Float[Array, "_ _"] | QuantizedMatrix, ...]
MATRICES = ("gate_up", "down", "qkv", "o")
"""The kinds of a layer's matrices, in the order in which they are read: the largest first, while there is most room."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Matrices stay separate, since slicing a stacked one would copy it; a step takes these leaves in 0.6 ms a call."""

    embed: Float[Array, "V D"] | QuantizedMatrix
    attention_norm: Float[Array, "Y D"]
    qkv: LayerMatrices
    qkv_bias: Float[Array, "Y O"] | None
    q_norm: Float[Array, "Y E"] | None
    k_norm: Float[Array, "Y E"] | None
    o: LayerMatrices
    mlp_norm: Float[Array, "Y D"]
    gate_up: LayerMatrices
    down: LayerMatrices
    norm: Float[Array, "D"]
    head: Float[Array, "V D"] | QuantizedMatrix

    @classmethod
    def read(cls, base: Path, config: ModelConfig, dtype: Dtype, layers: QuantizedLayers = separate) -> "Parameters":
        """The weights of a base directory, on the default device; quantised ones as a backend reads them best.

        One kind of the layers' matrices is read and arranged after the other, so that only one is in memory twice.

        Raises:
            BadCheckpoint: the directory is damaged or holds another model's weights.
        """
        kinds = {kind: [f"layers.{index}.{kind}.weight" for index in range(config.num_layers)] for kind in MATRICES}
        others = weight_table(config).keys() - set(chain(*kinds.values()))
        model = Transformer(config)
        with closing(read_in_groups(base, config, dtype, [others, *kinds.values()])) as read:
            with_values(model, next(read))
            return cls.of(model, {kind: _arranged(tuple(next(read).values()), layers) for kind in kinds})

    @classmethod
    def of(cls, model: Transformer, matrices: Mapping[str, LayerMatrices] | None = None) -> "Parameters":
        """The leaves of a model whose weights have values. A tied head is the embedding, not a copy.

        Args:
            model: the model.
            matrices: those of the layers, by kind, where it has none.
        """
        layers = list(model.layers)
        if matrices is None:
            matrices = {kind: tuple(getattr(layer, kind).weight.get_value() for layer in layers) for kind in MATRICES}
        embed = model.embed.weight.get_value()
        return cls(
            embed=embed,
            attention_norm=_stacked([layer.attention_norm.weight for layer in layers]),
            qkv_bias=_optional([layer.qkv.bias for layer in layers]),
            q_norm=_norms([layer.q_norm for layer in layers]),
            k_norm=_norms([layer.k_norm for layer in layers]),
            mlp_norm=_stacked([layer.mlp_norm.weight for layer in layers]),
            norm=model.norm.weight[...],
            head=embed if model.head is None else model.head.weight.get_value(),
            **matrices,
        )


def _arranged(weights: tuple[Any, ...], layers: QuantizedLayers) -> LayerMatrices:
    """When it is there, so that nothing else keeps what it was made of."""
    if not isinstance(weights[0], QuantizedMatrix):
        return weights
    found: LayerMatrices = jax.block_until_ready(layers(weights))
    return found


def _stacked(vectors: list[nnx.Param[Array]]) -> Float[Array, "Y W"]:
    return jnp.stack([vector[...] for vector in vectors])


def _optional(vectors: list[nnx.Param[Array] | None]) -> Float[Array, "Y W"] | None:
    present = [vector for vector in vectors if vector is not None]
    return _stacked(present) if present else None


def _norms(norms: list[Norm | None]) -> Float[Array, "Y W"] | None:
    return _optional([None if norm is None else norm.weight for norm in norms])
