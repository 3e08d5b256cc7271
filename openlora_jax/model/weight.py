"""A weight described once: shape, axes and source. Conversion, the checks of loading and random values follow it."""

from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from openlora_jax.quantization.format import Quantization


@dataclass(frozen=True, slots=True)
class Weight:
    """One array of the base model, or one quantised matrix.

    Attributes:
        shape: of its numbers: products are `[out, in]`.
        axes: the name of each dimension.
        sources: the Hugging Face tensors that it is made of, joined along the first dimension, with their row counts.
        quantization: the format of a quantised matrix.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    sources: tuple[tuple[str, int], ...]
    quantization: Quantization | None = None

    @property
    def rows(self) -> dict[str, slice]:
        """Where the rows of each source are."""
        ends = accumulate(count for _, count in self.sources)
        return {name: slice(end - count, end) for (name, count), end in zip(self.sources, ends, strict=True)}

    def parameter(self) -> nnx.Param[jax.Array]:
        """The described weight as a module's parameter, still without a value."""
        shape = cast(jax.Array, jax.ShapeDtypeStruct(self.shape, jnp.float32))
        return nnx.Param(shape, weight=self)
