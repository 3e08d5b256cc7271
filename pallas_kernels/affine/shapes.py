"""What the Triton kernel takes; the rest is refused by name."""

from jax import Array
from jaxtyping import Float

from pallas_kernels.affine.api import VectorPages
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.shapes import check_dtypes, check_layer, check_work
from pallas_kernels.triton_limits import check_same, check_size


def check_affine(
    y: Float[Array, "T L O"],
    pools: tuple[VectorPages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> None:
    """That `affine` can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    layers = pools[0].shape[0] if pools else 0
    check_same("modules, pools", len(modules), len(pools))
    check_same("the columns of y, of all pools together", y.shape[2], sum(pool.shape[3] for pool in pools))
    check_same("the layers of the pools", {pool.shape[0] for pool in pools}, {layers})
    check_same("the vectors of a page, what is served", {pool.shape[2] for pool in pools}, {2})
    check_layer(layer, layers)
    check_dtypes("y and pools", y, *pools)
    check_work(work, modules, y.shape[0], "y")
    check_size("tokens of a tile", y.shape[1], least=1)
