"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float, Int


@runtime_checkable
class TopK(Protocol):
    """The k greatest values of each row, best first, and their columns; of equal ones the first. None is NaN."""

    def __call__(self, x: Float[Array, "T V"], k: int) -> tuple[Float[Array, "T {k}"], Int[Array, "T {k}"]]: ...
