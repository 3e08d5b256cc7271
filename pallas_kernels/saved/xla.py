"""For XLA:CPU: a product for each matrix that some tile of this step has, of all tiles at once."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.linear.xla import by_blocks, product
from pallas_kernels.lora.api import WorkList
from pallas_kernels.saved.api import NONE, SavedPages, pages_of_tiles


def saved_linear(
    x: Float[Array, "T L D"], y: Float[Array, "T L V"], pool: SavedPages, work: WorkList, module: int
) -> Float[Array, "T L V"]:
    """y[t] = x[t] pool[0, page[n]]^T for the item n of tile t.

    A matrix is read once, however many tiles have it, and block by block: a product with a slice of the pool would copy
    that first, which takes ten times as long.
    """
    rows = x.reshape(-1, x.shape[2])

    def block_of(page: Array, first: Array | int, count: int) -> Float[Array, "V X"]:
        block = lax.dynamic_slice(pool, (0, page, first, 0), (1, 1, count, pool.shape[3]))
        return product(rows, lax.optimization_barrier(block[0, 0])).T

    def replace(state: tuple[Int[Array, "T"], Float[Array, "T L V"]]) -> tuple[Array, Array]:
        waiting, y = state
        page = jnp.max(waiting)
        saved = by_blocks(rows, pool.shape[2], lambda first, count: block_of(page, first, count))
        theirs = waiting == page
        return jnp.where(theirs, NONE, waiting), jnp.where(theirs[:, None, None], saved.reshape(y.shape), y)

    state = (pages_of_tiles(work, module, pool.shape[1]), y)
    replaced: Array = lax.while_loop(lambda state: jnp.any(state[0] != NONE), replace, state)[1]
    return replaced
