"""What the Triton kernel takes; the rest is refused by name."""

from jax import Array
from jaxtyping import Float

from pallas_kernels.int4_lora.api import WORDS, Int4Pages
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.shapes import check_dtypes, check_layer, check_pool, check_work
from pallas_kernels.triton_limits import check_same, check_size

DTYPES = ("uint16", "float16")
"""Of words and scales."""


def check_int4_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[Int4Pages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> None:
    """That `int4_lora` can be computed.

    Raises:
        ValueError: names the first thing that does not fit, and what it would have to fit.
    """
    layers = pools[0].a_words.shape[0] if pools else 0
    check_same("modules, pools", len(modules), len(pools))
    check_same("(tiles, tokens) of x and y", x.shape[:2], y.shape[:2])
    check_same("the columns of y, of all B together", y.shape[2], sum(pool.width_out for pool in pools))
    for pool in pools:
        check_same("the columns of x, of A", x.shape[2], pool.width_in)
        check_pool(pool.a_words, pool.b_words, layers)
        for words, scale in ((pool.a_words, pool.a_scale), (pool.b_words, pool.b_scale)):
            check_same("scales, pairs of a block's groups", scale.shape, (*words.shape[:3], words.shape[3] // 8))
            check_same("words of a page, whole blocks", words.shape[3] % WORDS, 0)
            check_same("the dtypes of a page, what is served", (str(words.dtype), str(scale.dtype)), DTYPES)
    check_layer(layer, layers)
    check_dtypes("x and y", x, y)
    check_work(work, modules, x.shape[0], "what is computed")
    check_size("tokens of a tile", x.shape[1], least=1)
