"""The plain form, and the oracle of the others: every tile's matrix gathered, whether it has one or not."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.lora.api import WorkList
from pallas_kernels.saved.api import NONE, SavedPages, pages_of_tiles


def saved_linear(
    x: Float[Array, "T L D"], y: Float[Array, "T L V"], pool: SavedPages, work: WorkList, module: int
) -> Float[Array, "T L V"]:
    """y[t] = x[t] pool[0, page[n]]^T for the item n of tile t."""
    pages = pages_of_tiles(work, module, pool.shape[1])
    saved = jnp.einsum("tld,tvd->tlv", x, pool[0, pages], precision=lax.Precision.HIGHEST)
    return jnp.where((pages == NONE)[:, None, None], y, saved.astype(y.dtype))


def saved_embedding(
    tokens: Int[Array, "T L"], y: Float[Array, "T L D"], pool: SavedPages, work: WorkList, module: int
) -> Float[Array, "T L D"]:
    """y[t] = pool[0, page[n], tokens[t]] for the item n of tile t: one gather for all tiles."""
    pages = pages_of_tiles(work, module, pool.shape[1])
    return jnp.where((pages == NONE)[:, None, None], y, pool[0, pages[:, None], tokens].astype(y.dtype))
