"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Bool, Float32, Int32


@runtime_checkable
class Threshold(Protocol):
    """A weight t of each row such that {w >= t} is what top-k leaves of the row, and top-p of that; 0 where `settled`.

    Weights are in 0..1 and the greatest of each row is 1. Top-k keeps the `top_k` greatest and their equals, V all of
    them. Top-p keeps the fewest of the greatest whose sum reaches `top_p` of what top-k left, and their equals; 1 keeps
    all. Sums are in float32, so a weight at the very edge may fall on either side.
    """

    def __call__(
        self,
        weights: Float32[Array, "T V"],
        top_k: Int32[Array, "T"],
        top_p: Float32[Array, "T"],
        settled: Bool[Array, "T"],
    ) -> Float32[Array, "T"]: ...
