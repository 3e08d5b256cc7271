"""For XLA:CPU: a loop over the items, as long as this step's list."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.affine.api import VectorPages
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList, scales_of


def affine(
    y: Float[Array, "T L O"],
    pools: tuple[VectorPages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """y[t] += scale[n] (gain[layer, page[n]] y[t] + bias[layer, page[n]]) for each item n of tile t, in list order."""
    start, tiles, pages, _ = map(jnp.asarray, work)
    wide, column = y.astype(jnp.float32), 0
    for pool, module in zip(pools, modules, strict=True):
        scales = scales_of(work, module, pool.shape[1])

        def apply_item(
            n: Array, y: Array, pool: Array = pool, scales: Array = scales, module: int = module, column: int = column
        ) -> Array:
            place = (tiles[module, n], 0, column)
            part = lax.dynamic_slice(y, place, (1, y.shape[1], pool.shape[3]))
            vectors = lax.dynamic_slice(pool, (layer, pages[module, n], 0, 0), (1, 1, *pool.shape[2:]))
            gain, bias = vectors.astype(jnp.float32)[0, 0][:, None, None, :]
            changed: Array = lax.dynamic_update_slice(y, part + scales[n] * (gain * part + bias), place)
            return changed

        wide = lax.fori_loop(jnp.int32(0), jnp.minimum(start[module, -1], len(scales)), apply_item, wide)
        column += pool.shape[3]
    return wide.astype(y.dtype)
