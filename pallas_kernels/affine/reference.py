"""The plain form, and the oracle of the others: every item of the list, dead ones too, one after the other."""

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
    parts, column = [], 0
    for pool, module in zip(pools, modules, strict=True):
        scales = scales_of(work, module, pool.shape[1])

        def apply_item(
            n: Array, part: Array, pool: Array = pool, scales: Array = scales, module: int = module
        ) -> Array:
            tile = tiles[module, n]
            gain, bias = pool[layer, pages[module, n]].astype(jnp.float32)[:, None, :]
            changed = part[tile] + scales[n] * (gain * part[tile] + bias)
            return part.at[tile].set(jnp.where(n < start[module, -1], changed, part[tile]))

        part = y[:, :, column : column + pool.shape[3]].astype(jnp.float32)
        part = lax.fori_loop(0, tiles.shape[1], apply_item, part)
        parts.append(part)
        column += pool.shape[3]
    return jnp.concatenate(parts, axis=2).astype(y.dtype)
