"""All weights of a model by flat name, for instance `layers.0.qkv.weight`; giving a model its values."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from openlora_jax.model.config import ModelConfig
from openlora_jax.model.transformer import Transformer
from openlora_jax.model.weight import Weight


def weight_table(config: ModelConfig) -> dict[str, Weight]:
    """The description of every weight of a model by its flat name."""
    return {name: parameter.get_metadata()["weight"] for name, parameter in _parameters(Transformer(config)).items()}


def with_values(model: nnx.Module, values: Mapping[str, Any]) -> None:
    """Gives parameters of an abstract model their values, by flat name; one that it does not have raises KeyError."""
    parameters = _parameters(model)
    for name, value in values.items():
        parameters[name].set_value(value)


def random_weights(config: ModelConfig, seed: int, deviation: float = 0.02) -> dict[str, np.ndarray]:
    """Normal values for products, ones for norms: a model of the right shape that means nothing."""
    generator = np.random.default_rng(seed)
    return {
        name: np.ones(weight.shape, np.float32)
        if weight.axes == ("norm",)
        else generator.normal(0, deviation, weight.shape).astype(np.float32)
        for name, weight in weight_table(config).items()
    }


def _parameters(model: nnx.Module) -> dict[str, nnx.Param[jax.Array]]:
    state = nnx.state(model, nnx.Param)
    return {".".join(str(part) for part in path): parameter for path, parameter in nnx.to_flat_state(state)}
