"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex
from pallas_kernels.quantized import QuantizedMatrix


@runtime_checkable
class QuantizedLinear(Protocol):
    """y = x W_layer^T, in the dtype of x, summed in float32; W's numbers may be rounded to that dtype first.

    The weights come as one matrix a layer, all of one format and shape.
    """

    def __call__(
        self, x: Float[Array, "T L I"], weights: tuple[QuantizedMatrix, ...], layer: LayerIndex
    ) -> Float[Array, "T L O"]: ...
