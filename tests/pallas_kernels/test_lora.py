"""Every implementation of `lora` against a loop in float64, over ranks, mixes, empty work and stale entries."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from numpy.typing import NDArray

from pallas_kernels.lora import reference, xla
from pallas_kernels.lora.api import EmbeddingLora, Lora, WorkList

LAYERS, PAGES, RANK, CAPACITY = 2, 7, 16, 12
IMPLEMENTATIONS = pytest.mark.parametrize("lora", [reference.lora, xla.lora], ids=["reference", "xla"])
Runs = list[list[tuple[int, float]]]
Operands = tuple[NDArray[np.float32], NDArray[np.float32], tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]]

runs_of_tiles = st.lists(
    st.lists(st.tuples(st.integers(0, PAGES - 1), st.floats(-2, 2, width=32)), max_size=3), min_size=1, max_size=4
)


def work_list(*modules: Runs) -> WorkList:
    """Each module's list of its tiles' (page, scale) items; entries past the end name a page that is not there."""
    shape = (len(modules), CAPACITY)
    tile, page = np.zeros(shape, np.int32), np.full(shape, PAGES - 1, np.int32)
    scale = np.full(shape, np.nan, np.float32)
    for module, runs in enumerate(modules):
        items = [(tile, page, scale) for tile, run in enumerate(runs) for page, scale in run]
        for n, item in enumerate(items):
            tile[module, n], page[module, n], scale[module, n] = item
    start = np.array([np.cumsum([0, *map(len, runs)]) for runs in modules], np.int32)
    return WorkList(jnp.asarray(start), jnp.asarray(tile), jnp.asarray(page), jnp.asarray(scale))


def operands(tiles: int, tokens: int, seed: int, widths: tuple[int, ...] = (40,)) -> Operands:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.normal(size=shape).astype(np.float32)

    pools = tuple((normal(LAYERS, PAGES, RANK, 24), normal(LAYERS, PAGES, RANK, width)) for width in widths)
    return normal(tiles, tokens, 24), normal(tiles, tokens, sum(widths)), pools


def on_device(*operands: *Operands) -> tuple[Array, Array, tuple[tuple[Array, Array], ...]]:
    x, y, pools = operands
    return jnp.asarray(x), jnp.asarray(y), tuple((jnp.asarray(a), jnp.asarray(b)) for a, b in pools)


def expected(runs: Runs, layer: int, *arrays: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    x, y, a, b = (array.astype(np.float64) for array in arrays)
    for tile, run in enumerate(runs):
        for page, scale in run:
            y[tile] += scale * (x[tile] @ a[layer, page].T) @ b[layer, page]
    return y


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=30)
@given(runs=runs_of_tiles, tokens=st.sampled_from([1, 16]), layer=st.integers(0, LAYERS - 1), seed=st.integers(0, 99))
def test_lora_adds_each_tiles_items(lora: Lora, runs: Runs, tokens: int, layer: int, seed: int) -> None:
    x, y, pools = operands(len(runs), tokens, seed)
    arrays = on_device(x, y, pools)
    added = jax.jit(lora, static_argnames="modules")(*arrays, jnp.int32(layer), work_list(runs), modules=(0,))
    np.testing.assert_allclose(added, expected(runs, layer, x, y, *pools[0]), atol=2e-3)


@IMPLEMENTATIONS
def test_modules_that_share_their_input_are_one_call(lora: Lora) -> None:
    runs: list[Runs] = [[[(1, 1.0)], [], [(3, 2.0)]], [[], [], []], [[(2, 0.5), (4, 1.0)], [(5, -1.0)], []]]
    x, y, pools = operands(3, 1, seed=2, widths=(16, 40, 8))
    order = (2, 0, 1)
    arrays = on_device(x, y, pools)
    added = lora(*arrays, jnp.int32(1), work_list(*runs), order)
    parts = np.split(y, np.cumsum([16, 40]), axis=2)
    due = [expected(runs[module], 1, x, part, *pool) for module, part, pool in zip(order, parts, pools, strict=True)]
    np.testing.assert_allclose(added, np.concatenate(due, axis=2), atol=1e-4)


@IMPLEMENTATIONS
def test_pages_that_no_item_names_are_never_read(lora: Lora) -> None:
    runs: Runs = [[(1, 1.0)], [], [(2, 0.5), (1, -1.0)]]
    x, y, pools = operands(3, 1, seed=3)
    poisoned = np.setdiff1d(np.arange(PAGES), [1, 2])
    for part in pools[0]:
        part[:, poisoned] = np.nan
    added = lora(*on_device(x, y, pools), jnp.int32(0), work_list(runs), (0,))
    assert np.isfinite(added).all()


@IMPLEMENTATIONS
def test_a_row_gets_the_same_bits_whoever_shares_its_batch(lora: Lora) -> None:
    mine = [(1, 1.0), (3, -0.5)]
    x, y, pools = operands(3, 1, seed=4)
    arrays = on_device(x, y, pools)
    alone = lora(*arrays, jnp.int32(1), work_list([[], mine, []]), (0,))
    together = lora(*arrays, jnp.int32(1), work_list([[(2, 1.0)] * 3, mine, [(5, 2.0)]]), (0,))
    np.testing.assert_array_equal(alone[1], together[1])
    np.testing.assert_array_equal(alone[0], y[0])


@pytest.mark.parametrize("embedding_lora", [reference.embedding_lora, xla.embedding_lora], ids=["reference", "xla"])
def test_embedding_lora_looks_up_columns(embedding_lora: EmbeddingLora) -> None:
    generator = np.random.default_rng(5)
    runs: Runs = [[(1, 1.0)], [(2, 0.5), (3, 2.0)]]
    a, b = generator.normal(size=(1, PAGES, RANK, 50)), generator.normal(size=(1, PAGES, RANK, 24))
    tokens, y = generator.integers(0, 50, (2, 16)), generator.normal(size=(2, 16, 24))
    wide = [jnp.asarray(array, jnp.float32) for array in (y, a, b)]
    added = embedding_lora(jnp.asarray(tokens, jnp.int32), wide[0], (wide[1], wide[2]), work_list([[], []], runs), 1)
    one_hot = np.eye(50)[tokens]
    np.testing.assert_allclose(added, expected(runs, 0, one_hot, y, a, b), atol=1e-4)
