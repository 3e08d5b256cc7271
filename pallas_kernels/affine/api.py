"""What every implementation of the op promises."""

from typing import Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList

VectorPages = Float[Array, "Y _ 2 _"]
"""One module's pool: of each page, a gain and a bias, both as wide as the module's output."""


@runtime_checkable
class Affine(Protocol):
    """y[t] += scale[n] (gain[layer, page[n]] y[t] + bias[layer, page[n]]) for each item n of tile t, in list order.

    An item sees what those before it made of y: a gain is for the only item of its tile. Modules that read the same
    input are one call, as in `Lora`: their outputs lie side by side in y, `pools` are theirs in that order, and the
    items of `pools[i]` are row `modules[i]` of the list. In float32. A tile without items is returned as it came.
    """

    def __call__(
        self,
        y: Float[Array, "T L O"],
        pools: tuple[VectorPages, ...],
        layer: LayerIndex,
        work: WorkList,
        modules: tuple[int, ...],
    ) -> Float[Array, "T L O"]: ...
