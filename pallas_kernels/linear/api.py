"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex
from pallas_kernels.quantized import Matrix


@runtime_checkable
class Linear(Protocol):
    """y = x W_layer^T, in the dtype of x. That of `Ops` takes quantised weights too, as `QuantizedLinear` says.

    The weights come as one array a layer, `[out, in]` as Hugging Face stores them, all of one shape.
    """

    def __call__(
        self, x: Float[Array, "T L I"], weights: tuple[Matrix, ...], layer: LayerIndex
    ) -> Float[Array, "T L O"]: ...
