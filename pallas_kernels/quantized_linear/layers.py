"""How the matrices of all layers lie in memory: one after the other, or each for itself."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pallas_kernels.quantized import QuantizedMatrix


@runtime_checkable
class QuantizedLayers(Protocol):
    """One matrix a layer, as `quantized_linear` reads them best; asked for once, when a model is loaded."""

    def __call__(self, weights: tuple[QuantizedMatrix, ...]) -> tuple[QuantizedMatrix, ...]: ...


def stacked(weights: tuple[QuantizedMatrix, ...]) -> tuple[QuantizedMatrix, ...]:
    """One matrix whose arrays have the layers first."""
    return (jax.tree.map(lambda *parts: jnp.stack(parts), *weights),)


def separate(weights: tuple[QuantizedMatrix, ...]) -> tuple[QuantizedMatrix, ...]:
    """As they are."""
    return weights
