"""What the Triton kernel takes; the rest is refused by name."""

from jax import Array
from jaxtyping import Float

from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.shapes import check_dtypes, check_work
from pallas_kernels.saved.api import SavedPages
from pallas_kernels.triton_limits import check_same


def check_saved_linear(
    x: Float[Array, "T L D"], y: Float[Array, "T L V"], pool: SavedPages, work: WorkList, module: int
) -> None:
    """That `saved_linear` can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    check_same("(tiles, tokens) of x and y", x.shape[:2], y.shape[:2])
    check_same("the columns of x, of a page", x.shape[2], pool.shape[3])
    check_same("the columns of y, the rows of a page", y.shape[2], pool.shape[2])
    check_same("layers of the pool, of a head", pool.shape[0], 1)
    check_dtypes("x, y and pool", x, y, pool)
    check_work(work, (module,), x.shape[0], "what is computed")
