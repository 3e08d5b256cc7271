"""Every implementation of the saved modules' ops against numpy in float64; what the kernel refuses and lowers to."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, ShapeDtypeStruct
from numpy.typing import NDArray

from pallas_kernels.linear import xla as linear_xla
from pallas_kernels.lora.api import WorkList
from pallas_kernels.saved import pallas_triton, reference, xla
from pallas_kernels.saved.api import SavedLinear
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.rank_pages import Runs, work_list
from tests.pallas_kernels.real import INTERPRET

PAGES, WIDTH, VOCABULARY = 4, 40, 100
MODULE = 1
kernel = partial(pallas_triton.saved_linear, interpret=INTERPRET)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "saved_linear", [reference.saved_linear, xla.saved_linear, kernel], ids=["reference", "xla", "pallas_triton"]
)
PageOfTile = list[int | None]
pages_of_tiles = st.lists(st.none() | st.integers(0, PAGES - 1), min_size=1, max_size=20)


def listed(pages: PageOfTile) -> WorkList:
    """The items as the second module's of a list; a scale says nothing."""
    runs: Runs = [[] if page is None else [(page, 0.5)] for page in pages]
    return work_list([[] for _ in pages], runs, capacity=20)


def operands(tiles: int, tokens: int, seed: int, dtype: str = "float32") -> tuple[Array, Array, Array]:
    generator = np.random.default_rng(seed)
    shapes = ((tiles, tokens, WIDTH), (tiles, tokens, VOCABULARY), (1, PAGES, VOCABULARY, WIDTH))
    x, y, pool = (jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes)
    return x, y, pool


def expected(pages: PageOfTile, *arrays: Array) -> NDArray[np.float64]:
    x, y, pool = (np.array(array, np.float64) for array in arrays)
    for tile, page in enumerate(pages):
        if page is not None:
            y[tile] = x[tile] @ pool[0, page].T
    return y


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=6)
@given(pages=pages_of_tiles, tokens=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_each_tile_has_the_product_with_its_own_matrix(
    saved_linear: SavedLinear, pages: PageOfTile, tokens: int, seed: int
) -> None:
    x, y, pool = operands(len(pages), tokens, seed)
    found = jax.jit(saved_linear, static_argnames="module")(x, y, pool, listed(pages), module=MODULE)
    np.testing.assert_allclose(found, expected(pages, x, y, pool), rtol=1e-4, atol=1e-4)


@IMPLEMENTATIONS
def test_a_tile_without_an_item_keeps_its_bits_and_other_pages_are_not_read(saved_linear: SavedLinear) -> None:
    pages: PageOfTile = [2, None, 2, 1]
    x, y, pool = operands(len(pages), 1, seed=3)
    poisoned = pool.at[:, np.array([0, 3])].set(np.nan)
    found = saved_linear(x, y, poisoned, listed(pages), MODULE)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1], y[1])


def test_many_rows_of_one_matrix_are_as_many_programs_as_they_need() -> None:
    pages: PageOfTile = [1 + tile % 2 for tile in range(70)]
    x, y, pool = operands(len(pages), 1, seed=4)
    work = work_list([[] for _ in pages], [[(page, 1.0)] for page in pages if page is not None], capacity=70)
    np.testing.assert_allclose(kernel(x, y, pool, work, MODULE), expected(pages, x, y, pool), rtol=1e-4, atol=1e-4)


@IMPLEMENTATIONS
def test_a_page_that_is_not_there_changes_nothing(saved_linear: SavedLinear) -> None:
    x, y, pool = operands(3, 1, seed=5)
    work = listed([1, 2, 3])
    page = np.array(work.page)
    page[MODULE, :2] = PAGES, -1
    broken = work._replace(page=page)
    due = expected([None, None, 3], x, y, pool)
    np.testing.assert_allclose(saved_linear(x, y, pool, broken, MODULE), due, atol=1e-4)
    tokens = jnp.zeros((3, 1), jnp.int32)
    found = reference.saved_embedding(tokens, x, pool, broken, MODULE)
    np.testing.assert_array_equal(found[:2], x[:2])
    np.testing.assert_array_equal(found[2, 0], pool[0, 3, 0])


@pytest.mark.parametrize("outs", [1, 99, 100])
def test_blocks_of_a_matrix_cover_it(outs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_xla, "BLOCK_BYTES", 4 * WIDTH * 7)
    x, _, pool = operands(3, 1, seed=6)
    weight, rows = pool[0, 0, :outs], x[:, 0]

    def of_block(first: Array | int, count: int) -> Array:
        return (rows @ jax.lax.dynamic_slice_in_dim(weight, first, count).T).T

    np.testing.assert_allclose(linear_xla.by_blocks(rows, outs, of_block), rows @ weight.T, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_rows_of_their_own_matrix(dtype: str) -> None:
    pages: PageOfTile = [None, 3, 1]
    _, _, pool = operands(1, 1, seed=7, dtype=dtype)
    tokens = jnp.asarray(np.random.default_rng(8).integers(0, VOCABULARY, (3, 5)), jnp.int32)
    y = jnp.ones((3, 5, WIDTH), dtype)
    found = jax.jit(reference.saved_embedding, static_argnames="module")(tokens, y, pool, listed(pages), module=MODULE)
    for tile, page in enumerate(pages):
        np.testing.assert_array_equal(found[tile], y[tile] if page is None else pool[0, page, tokens[tile]])


def shapes(dtype: str, tiles: int) -> dict[str, Any]:
    """Those of Llama-3.1-8B: of five heads, whose offsets have 64 bits."""
    work: list[Any] = [ShapeDtypeStruct((2, tiles + 1), "int32")]
    work += [ShapeDtypeStruct((2, 512), each) for each in ("int32", "int32", "float32")]
    return {
        "x": ShapeDtypeStruct((tiles, 1, 4096), dtype),
        "y": ShapeDtypeStruct((tiles, 1, 128256), dtype),
        "pool": ShapeDtypeStruct((1, 5, 128256, 4096), dtype),
        "work": WorkList(*work),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tiles", [1, 64, 200])
def test_it_is_one_launch_in_place_without_a_loop_of_the_host(dtype: str, tiles: int) -> None:
    def step(x: Array, y: Array, pool: Array, work: WorkList) -> Array:
        return pallas_triton.saved_linear(x, y, pool, work, MODULE)

    program = lower_cuda(step, *shapes(dtype, tiles).values())
    assert triton_kernels(program) == {"saved_linear_kernel": 1}
    assert "output_operand_alias<output_tuple_indices = [], operand_index = 4" in program.as_text()
    assert "stablehlo.while" not in program.as_text()


REFUSED: dict[str, dict[str, Any]] = {
    "the columns of x, of a page differ: 4000 and 4096": {"x": ShapeDtypeStruct((3, 1, 4000), "bfloat16")},
    "the columns of y, the rows of a page differ: 320 and 128256": {"y": ShapeDtypeStruct((3, 1, 320), "bfloat16")},
    "dtypes bfloat16, float32": {"y": ShapeDtypeStruct((3, 1, 128256), "float32")},
    r"\(tiles, tokens\) of x and y differ": {"x": ShapeDtypeStruct((4, 1, 4096), "bfloat16")},
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_named(reason: str) -> None:
    def call(fields: dict[str, Any]) -> Array:
        return pallas_triton.saved_linear(**fields, module=MODULE)

    jax.eval_shape(call, shapes("bfloat16", 3))
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(call, shapes("bfloat16", 3) | REFUSED[reason])
