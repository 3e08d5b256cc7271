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

runs_of_tiles = st.lists(
    st.lists(st.tuples(st.integers(0, PAGES - 1), st.floats(-2, 2, width=32)), max_size=3), min_size=1, max_size=4
)


def work_list(runs: Runs) -> WorkList:
    """The list of each tile's (page, scale) items; entries past the end name a page that is not there."""
    items = [(tile, page, scale) for tile, run in enumerate(runs) for page, scale in run]
    tile, page = np.zeros(CAPACITY, np.int32), np.full(CAPACITY, PAGES - 1, np.int32)
    scale = np.full(CAPACITY, np.nan, np.float32)
    for n, item in enumerate(items):
        tile[n], page[n], scale[n] = item
    start = np.cumsum([0, *map(len, runs)]).astype(np.int32)
    return WorkList(jnp.asarray(start), jnp.asarray(tile), jnp.asarray(page), jnp.asarray(scale))


def operands(runs: Runs, tokens: int, seed: int) -> tuple[NDArray[np.float32], ...]:
    generator = np.random.default_rng(seed)
    shapes = ((len(runs), tokens, 24), (len(runs), tokens, 40), (LAYERS, PAGES, RANK, 24), (LAYERS, PAGES, RANK, 40))
    return tuple(generator.normal(size=shape).astype(np.float32) for shape in shapes)


def on_device(arrays: tuple[NDArray[np.float32], ...]) -> tuple[Array, Array, Array, Array]:
    x, y, a, b = map(jnp.asarray, arrays)
    return x, y, a, b


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
    arrays = operands(runs, tokens, seed)
    added = jax.jit(lora)(*on_device(arrays), jnp.int32(layer), work_list(runs))
    np.testing.assert_allclose(added, expected(runs, layer, *arrays), atol=2e-3)


@IMPLEMENTATIONS
def test_pages_that_no_item_names_are_never_read(lora: Lora) -> None:
    runs: Runs = [[(1, 1.0)], [], [(2, 0.5), (1, -1.0)]]
    x, y, a, b = operands(runs, 1, seed=3)
    poisoned = np.setdiff1d(np.arange(PAGES), [1, 2])
    a[:, poisoned], b[:, poisoned] = np.nan, np.nan
    added = lora(*on_device((x, y, a, b)), jnp.int32(0), work_list(runs))
    assert np.isfinite(added).all()


@IMPLEMENTATIONS
def test_a_row_gets_the_same_bits_whoever_shares_its_batch(lora: Lora) -> None:
    mine = [(1, 1.0), (3, -0.5)]
    x, y, a, b = operands([mine, mine, mine], 1, seed=4)
    alone = lora(*on_device((x, y, a, b)), jnp.int32(1), work_list([[], mine, []]))
    together = lora(*on_device((x, y, a, b)), jnp.int32(1), work_list([[(2, 1.0)] * 3, mine, [(5, 2.0)]]))
    np.testing.assert_array_equal(alone[1], together[1])
    np.testing.assert_array_equal(alone[0], y[0])


@pytest.mark.parametrize("embedding_lora", [reference.embedding_lora, xla.embedding_lora], ids=["reference", "xla"])
def test_embedding_lora_looks_up_columns(embedding_lora: EmbeddingLora) -> None:
    generator = np.random.default_rng(5)
    runs: Runs = [[(1, 1.0)], [(2, 0.5), (3, 2.0)]]
    a, b = generator.normal(size=(1, PAGES, RANK, 50)), generator.normal(size=(1, PAGES, RANK, 24))
    tokens, y = generator.integers(0, 50, (2, 16)), generator.normal(size=(2, 16, 24))
    wide = [jnp.asarray(array, jnp.float32) for array in (y, a, b)]
    added = embedding_lora(jnp.asarray(tokens, jnp.int32), wide[0], wide[1], wide[2], work_list(runs))
    one_hot = np.eye(50)[tokens]
    np.testing.assert_allclose(added, expected(runs, 0, one_hot, y, a, b), atol=1e-4)
