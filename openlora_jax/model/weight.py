"""A weight described once: shape, axes and source. Conversion, the checks of loading and random values follow it."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True, slots=True)
class Weight:
    """One array of the base model.

    Attributes:
        shape: as stored: products are `[out, in]`.
        axes: the name of each dimension.
        sources: the Hugging Face tensors that it is made of, joined along the first dimension, with their row counts.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    sources: tuple[tuple[str, int], ...]

    def parameter(self) -> nnx.Param[jax.Array]:
        """The described weight as a module's parameter, still without a value."""
        shape = cast(jax.Array, jax.ShapeDtypeStruct(self.shape, jnp.float32))
        return nnx.Param(shape, weight=self)
