"""The adapter in training: what is learned, and its part in the model's forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from openlora_jax.adapters.modules import module_shapes
from openlora_jax.model.config import ModelConfig
from openlora_jax.training.recipe import Recipe
from pallas_kernels.layers import LayerIndex
from pallas_kernels.registry import Ops

HEADLESS = ("embed_tokens", "lm_head")
"""Modules outside of the layers, which are not trained."""


class Factors(NamedTuple):
    """One module's low-rank factors in every layer, ranks before widths; no ranks where it is no target."""

    a: Float[Array, "Y R I"]
    b: Float[Array, "Y R O"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """The factors of every linear module: all that a gradient reaches. Has the part of adapters in a forward pass."""

    factors: Mapping[str, Factors]
    scale: float = field(metadata={"static": True})

    @classmethod
    def create(cls, config: ModelConfig, recipe: Recipe) -> "TrainedAdapter":
        """As PEFT begins: A uniform within 1 / sqrt(d_in) of 0, B zero, so that the model is still the base."""
        factors = {}
        key = jax.random.key(recipe.seed)
        for index, (module, size) in enumerate(module_shapes(config).items()):
            if module not in HEADLESS:
                rank, bound = recipe.rank if module in recipe.targets else 0, size.d_in**-0.5
                a = jax.random.uniform(
                    jax.random.fold_in(key, index), (size.layers, rank, size.d_in), minval=-bound, maxval=bound
                )
                factors[module] = Factors(a, jnp.zeros((size.layers, rank, size.d_out)))
        return cls(factors, recipe.scale)

    def add(
        self,
        ops: Ops,
        modules: tuple[str, ...],
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        layer: LayerIndex,
        onto: Float[Array, "T L O"] | None = None,
    ) -> Float[Array, "T L O"]:
        y = y if onto is None else onto + y
        if modules == ("lm_head",):
            return y
        chosen = [self.factors[module] for module in modules]
        return y + self.scale * jnp.concatenate([x @ a[layer].T @ b[layer] for a, b in chosen], axis=-1)

    def add_embedding(self, ops: Ops, tokens: Int[Array, "T L"], y: Float[Array, "T L D"]) -> Float[Array, "T L D"]:
        return y
