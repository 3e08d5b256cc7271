"""What the Triton kernels take. The rest is refused by name, since of the lowering's limits some pass in silence."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.triton_limits import DTYPES, check_same, check_size

PAGE_RANKS = 16
STEP_COLUMNS = 64
"""What the Mosaic kernel's steps are made of: two for each thread of a warp. It has no masks for a part of that."""


def check_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> None:
    """That `lora` can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    layers = pools[0][0].shape[0] if pools else 0
    check_same("modules, pools", len(modules), len(pools))
    check_same("(tiles, tokens) of x and y", x.shape[:2], y.shape[:2])
    check_same("the columns of y, of all B together", y.shape[2], sum(b.shape[3] for _, b in pools))
    for a, b in pools:
        check_same("the columns of x, of A", x.shape[2], a.shape[3])
        check_pool(a, b, layers)
    check_layer(layer, layers)
    check_dtypes("x, y and pools", x, y, *(array for pair in pools for array in pair))
    check_work(work, modules, x.shape[0], "what is computed")
    check_size("tokens of a tile", x.shape[1], least=1)


def check_embedding_lora(
    tokens: Int[Array, "T L"], y: Float[Array, "T L O"], pool: PagePair, work: WorkList, module: int
) -> None:
    """That `embedding_lora` can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    check_same("(tiles, tokens) of the ids and y", tokens.shape, y.shape[:2])
    check_same("the columns of y, of B", y.shape[2], pool[1].shape[3])
    check_same("the dtype of ids, what is served", tokens.dtype, jnp.dtype("int32"))
    check_pool(*pool, layers=1)
    check_dtypes("x, y and pools", y, *pool)
    check_work(work, (module,), tokens.shape[0], "what is computed")
    check_size("tokens of a tile", tokens.shape[1], least=1)


def check_columns(*widths: int) -> None:
    """That the Mosaic kernel's steps end where the columns do.

    Raises:
        ValueError: names a width that they do not divide.
    """
    for width in widths:
        if width % STEP_COLUMNS:
            raise ValueError(f"columns of A or B: {width}; must be a multiple of {STEP_COLUMNS}")


def check_pool(a: Shaped[Array, "Y P R _"], b: Shaped[Array, "Y P R _"], layers: int) -> None:
    """That A and B have the same pages of so many layers. Raises ValueError."""
    check_same("(layers, pages, ranks of a page) of A and B", a.shape[:3], b.shape[:3])
    check_same("layers of a pool, of its model", a.shape[0], layers)
    check_same("ranks of a page, what is served", a.shape[2], PAGE_RANKS)


def check_layer(layer: LayerIndex, layers: int) -> None:
    """That a known layer is one of the pools'. Raises ValueError."""
    if isinstance(layer, np.ndarray) and not 0 <= layer < layers:
        raise ValueError(f"layer {layer}: the pools have {layers}")


def check_dtypes(of: str, *arrays: Float[Array, "..."]) -> None:
    """That they have one of the dtypes that are served, all the same. Raises ValueError; `of` says whose it is."""
    names = sorted({str(array.dtype) for array in arrays})
    if len(names) > 1 or names[0] not in DTYPES:
        raise ValueError(f"dtypes {', '.join(names)}: {of} must have one, {' or '.join(DTYPES)}")


def check_work(work: WorkList, modules: tuple[int, ...], tiles: int, of: str) -> None:
    """That a list is for so many tiles, has these modules and agrees with itself.

    Raises:
        ValueError: names what does not; `of` says whose the tiles are.
    """
    rows = work.start.shape[0]
    check_same(f"(modules, tiles + 1) of the list's starts, of {of}", work.start.shape, (rows, tiles + 1))
    for name, dtype in (("page", "int32"), ("scale", "float32")):
        check_same(f"the shapes of {name} and tile", getattr(work, name).shape, work.tile.shape)
        check_same(f"the dtype of {name}, what is served", getattr(work, name).dtype, jnp.dtype(dtype))
    check_same("the dtype of start, what is served", work.start.dtype, jnp.dtype("int32"))
    check_same("modules of page, of start", work.page.shape[0], rows)
    if not all(0 <= module < rows for module in modules):
        raise ValueError(f"modules {modules}: the list has {rows}")
