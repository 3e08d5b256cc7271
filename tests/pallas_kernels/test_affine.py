"""Every implementation of `affine` against a loop in float64, and what the Triton kernel refuses and lowers to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, ShapeDtypeStruct
from numpy.typing import NDArray

from pallas_kernels.affine import pallas_triton, reference, xla
from pallas_kernels.affine.api import Affine
from pallas_kernels.lora.api import WorkList
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.rank_pages import LAYERS, PAGES, Runs, work_list
from tests.pallas_kernels.real import INTERPRET

TILES = 3
WIDTHS = (40, 520)
kernel = functools.partial(pallas_triton.affine, interpret=INTERPRET)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "affine", [reference.affine, xla.affine, kernel], ids=["reference", "xla", "pallas_triton"]
)
runs_of_tiles = st.lists(
    st.lists(st.tuples(st.integers(0, PAGES - 1), st.floats(-2, 2, width=32)), max_size=3),
    min_size=TILES,
    max_size=TILES,
)


def operands(tokens: int, seed: int, dtype: str = "float32") -> tuple[Array, tuple[Array, ...]]:
    generator = np.random.default_rng(seed)
    y = generator.normal(size=(TILES, tokens, sum(WIDTHS)))
    pools = [generator.normal(size=(LAYERS, PAGES, 2, width), scale=0.5) for width in WIDTHS]
    return jnp.asarray(y, dtype), tuple(jnp.asarray(pool, dtype) for pool in pools)


def change(affine: Affine, y: Array, pools: tuple[Array, ...], layer: int, work: WorkList) -> Array:
    changed: Array = jax.jit(affine, static_argnames="modules")(y, pools, jnp.int32(layer), work, modules=(1, 0))
    return changed


def expected(runs: tuple[Runs, Runs], layer: int, y: Array, pools: tuple[Array, ...]) -> NDArray[np.float64]:
    """The first pool is that of the list's second module."""
    parts = np.split(np.array(y, np.float64), [WIDTHS[0]], axis=2)
    for part, pool, tiles in zip(parts, pools, runs[::-1], strict=True):
        for tile, run in enumerate(tiles):
            for page, scale in run:
                gain, bias = np.array(pool, np.float64)[layer, page]
                part[tile] += scale * (gain * part[tile] + bias)
    return np.concatenate(parts, axis=2)


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=10)
@given(
    runs=st.tuples(runs_of_tiles, runs_of_tiles),
    tokens=st.sampled_from([1, 32]),
    layer=st.integers(0, LAYERS - 1),
    seed=st.integers(0, 99),
)
def test_each_tile_is_scaled_and_shifted_by_its_items(
    affine: Affine, runs: tuple[Runs, Runs], tokens: int, layer: int, seed: int
) -> None:
    y, pools = operands(tokens, seed)
    changed = change(affine, y, pools, layer, work_list(*runs))
    np.testing.assert_allclose(changed, expected(runs, layer, y, pools), rtol=1e-5, atol=1e-5)


@IMPLEMENTATIONS
def test_a_tile_without_items_keeps_its_bits_and_other_pages_are_not_read(affine: Affine) -> None:
    runs: tuple[Runs, Runs] = ([[(1, 1.0)], [], []], [[], [], [(2, 1.0)]])
    y, pools = operands(1, seed=3)
    poisoned = tuple(pool.at[:, np.setdiff1d(np.arange(PAGES), [1, 2])].set(np.nan) for pool in pools)
    changed = change(affine, y, poisoned, 1, work_list(*runs))
    assert np.isfinite(changed).all()
    np.testing.assert_array_equal(changed[1], y[1])
    assert not np.array_equal(changed[0], y[0])


@IMPLEMENTATIONS
def test_an_item_whose_page_is_not_there_changes_nothing(affine: Affine) -> None:
    y, pools = operands(1, seed=4)
    work = work_list([[(1, 1.0)], [], []], [[], [(1, 1.0), (2, 1.0)], []])
    page, scale = np.array(work.page), np.array(work.scale)
    page[:, 0], scale[0, 0] = (PAGES, -1), np.nan
    broken = work._replace(page=page, scale=scale)
    due = expected(([[], [], []], [[], [(2, 1.0)], []]), 0, y, pools)
    np.testing.assert_allclose(change(affine, y, pools, 0, broken), due, rtol=1e-5, atol=1e-5)


def shapes(dtype: str, tiles: int, tokens: int, *widths: int) -> tuple[Any, ...]:
    y = ShapeDtypeStruct((tiles, tokens, sum(widths)), dtype)
    pools = tuple(ShapeDtypeStruct((32, 400, 2, width), dtype) for width in widths)
    work: list[Any] = [ShapeDtypeStruct((len(widths), tiles + 1), "int32")]
    work += [ShapeDtypeStruct((len(widths), 512), each) for each in ("int32", "int32", "float32")]
    return y, pools, WorkList(*work)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tiles", "tokens"), [(64, 1), (32, 64)])
def test_modules_that_share_an_input_are_one_launch_in_place(dtype: str, tiles: int, tokens: int) -> None:
    def step(y: Array, pools: tuple[Array, ...], work: WorkList) -> Array:
        return pallas_triton.affine(y, pools, np.asarray(1, np.int32), work, (0, 1, 2))

    program = lower_cuda(step, *shapes(dtype, tiles, tokens, 4096, 1024, 1024))
    assert triton_kernels(program) == {"affine_kernel": 1}
    assert "output_operand_alias<output_tuple_indices = [], operand_index = 7" in program.as_text()
    assert "stablehlo.while" not in program.as_text()


GOOD = dict(zip(("y", "pools", "work"), shapes("bfloat16", 3, 1, 40, 16), strict=True))
REFUSED: dict[str, dict[str, Any]] = {
    "the columns of y, of all pools together differ: 48 and 56": {"y": ShapeDtypeStruct((3, 1, 48), "bfloat16")},
    "dtypes bfloat16, float32": {"y": ShapeDtypeStruct((3, 1, 56), "float32")},
    "tokens of a tile: 24": {"y": ShapeDtypeStruct((3, 24, 56), "bfloat16")},
    r"the vectors of a page, what is served differ: \{3\} and \{2\}": {
        "pools": tuple(ShapeDtypeStruct((32, 400, 3, width), "bfloat16") for width in (40, 16))
    },
    r"starts, of y differ: \(2, 4\) and \(2, 5\)": {"y": ShapeDtypeStruct((4, 1, 56), "bfloat16")},
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_named(reason: str) -> None:
    def call(fields: dict[str, Any]) -> Array:
        return pallas_triton.affine(**fields, layer=np.asarray(1, np.int32), modules=(0, 1))

    jax.eval_shape(call, GOOD)
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(call, GOOD | REFUSED[reason])
