"""What the Triton kernel takes; the rest is refused by name."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pallas_kernels.affine.api import VectorPages
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.shapes import DTYPES, check_size


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
    layers, rows = pools[0].shape[0] if pools else 0, work.start.shape[0]
    _same("modules, pools", len(modules), len(pools))
    _same("the columns of y, of all pools together", y.shape[2], sum(pool.shape[3] for pool in pools))
    _same("the layers of the pools", {pool.shape[0] for pool in pools}, {layers})
    _same("the vectors of a page, what is served", {pool.shape[2] for pool in pools}, {2})
    _same("(modules, tiles + 1) of the list's starts, of y", work.start.shape, (rows, y.shape[0] + 1))
    if isinstance(layer, np.ndarray) and not 0 <= layer < layers:
        raise ValueError(f"layer {layer}: the pools have {layers}")
    if not all(0 <= module < rows for module in modules):
        raise ValueError(f"modules {modules}: the list has {rows}")
    names = sorted({str(array.dtype) for array in (y, *pools)})
    if len(names) > 1 or names[0] not in DTYPES:
        raise ValueError(f"dtypes {', '.join(names)}: y and pools must have one, {' or '.join(DTYPES)}")
    for name, dtype in (("start", "int32"), ("page", "int32"), ("scale", "float32")):
        _same(f"the dtype of {name}, what is served", getattr(work, name).dtype, jnp.dtype(dtype))
    check_size("tokens of a tile", y.shape[1], least=1)


def _same(what: str, one: object, other: object) -> None:
    if one != other:
        raise ValueError(f"{what} differ: {one} and {other}")
