"""The floor of a decode step: its matrix products alone, in the fastest form that XLA is known to have here."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from openlora_jax.errors import InvalidConfig
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.parameters import Parameters


def products(config: ModelConfig, parameters: Parameters, x: Float[Array, "D X"]) -> Float[Array, "V X"]:
    """Every product of a decode step of X rows, chained: feature-major, q/k/v and gate/up joined, head included.

    No norm, no attention, no cache, no sampling: nothing that could be left out of a decoder is in it.
    """
    head: Any = parameters.head
    layers: Any = zip(parameters.qkv, parameters.o, parameters.gate_up, parameters.down, strict=True)
    for qkv, o, gate_up, down in layers:
        x = x + o @ (qkv @ x)[: config.q_size]
        gate, up = jnp.split(gate_up @ x, 2)
        x = x + down @ (gate * up)
    logits: Array = head @ x
    return logits


class Floor:
    """The products compiled for a number of rows. Raises InvalidConfig where the model is quantised."""

    def __init__(self, config: ModelConfig, parameters: Parameters, rows: int) -> None:
        if config.quantization is not None:
            raise InvalidConfig("base", "is quantised, and this floor is that of plain products; give a plain base")
        shape = (config.hidden_size, rows)
        # Small, since nothing normalises the hidden state between the layers.
        self._x = jnp.asarray(np.random.default_rng(0).normal(0, 1e-3, shape), parameters.norm.dtype)
        self._parameters = parameters
        self._run = jax.jit(partial(products, config))
        jax.block_until_ready(self.dispatch())

    def dispatch(self) -> Array:
        """One pass, not waited for."""
        logits: Array = self._run(self._parameters, self._x)
        return logits
