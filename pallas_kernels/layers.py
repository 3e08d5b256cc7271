"""The loop over a model's layers: rolled where compiling is dear, unrolled where a layer must be known to its ops."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jax import Array, lax
from jaxtyping import Int

LayerIndex = Int[Array, ""] | Int[np.ndarray, ""]
"""Traced in a rolled loop, known in an unrolled one."""
Carry = TypeVar("Carry")


@runtime_checkable
class OverLayers(Protocol):
    """step(count - 1, ... step(1, step(0, carry)))"""

    def __call__(self, count: int, step: Callable[[LayerIndex, Carry], Carry], carry: Carry) -> Carry: ...


def rolled(count: int, step: Callable[[LayerIndex, Carry], Carry], carry: Carry) -> Carry:
    """One body for all layers: compiled once."""
    looped: Carry = lax.fori_loop(0, count, step, carry)
    return looped


def unrolled(count: int, step: Callable[[LayerIndex, Carry], Carry], carry: Carry) -> Carry:
    """One body a layer, its index a constant."""
    for layer in range(count):
        carry = step(np.asarray(layer, np.int32), carry)
    return carry
