"""Every implementation of `lora` against a loop in float64, over ranks, mixes, empty work and stale entries."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from pallas_kernels.lora import config, pallas_triton, reference, xla
from pallas_kernels.lora.api import EmbeddingLora, Lora, WorkList
from tests.pallas_kernels.rank_pages import (
    BROKEN,
    LAYERS,
    PAGES,
    RANK,
    Operands,
    Runs,
    broken_runs,
    expected,
    operands,
    parted,
    work_list,
)
from tests.pallas_kernels.real import INTERPRET

TILES = 3
kernel = functools.partial(pallas_triton.lora, interpret=INTERPRET)
embedding_kernel = functools.partial(pallas_triton.embedding_lora, interpret=INTERPRET)


@functools.wraps(pallas_triton.lora)
def kernel_in_place(*operands: Any, **static: Any) -> Array:
    """As with outputs that are large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "APART_SIZE", 0)
        return kernel(*operands, **static)


IMPLEMENTATIONS = pytest.mark.parametrize(
    "lora",
    [reference.lora, xla.lora, kernel, kernel_in_place],
    ids=["reference", "xla", "pallas_triton", "pallas_triton in place"],
)
EMBEDDING_IMPLEMENTATIONS = pytest.mark.parametrize(
    "embedding_lora",
    [reference.embedding_lora, xla.embedding_lora, embedding_kernel],
    ids=["reference", "xla", "pallas_triton"],
)

runs_of_tiles = st.lists(
    st.lists(st.tuples(st.integers(0, PAGES - 1), st.floats(-2, 2, width=32)), max_size=4),
    min_size=TILES,
    max_size=TILES,
)


def add(lora: Lora, arrays: Operands, layer: int, work: WorkList, modules: tuple[int, ...] = (0,)) -> Array:
    """Compiled once for each implementation and shape."""
    added: Array = jax.jit(lora, static_argnames="modules")(*arrays, jnp.int32(layer), work, modules=modules)
    return added


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=30)
@given(runs=runs_of_tiles, tokens=st.sampled_from([1, 16]), layer=st.integers(0, LAYERS - 1), seed=st.integers(0, 99))
def test_lora_adds_each_tiles_items(lora: Lora, runs: Runs, tokens: int, layer: int, seed: int) -> None:
    x, y, pools = operands(TILES, tokens, seed)
    added = add(lora, (x, y, pools), layer, work_list(runs))
    np.testing.assert_allclose(added, expected(runs, layer, x, y, *pools[0]), atol=1e-4)


def test_an_item_more_or_another_scale_is_seen() -> None:
    runs, others = [[(1, 1.0), (2, 0.5)], [], []], ([[(1, 1.0)], [], []], [[(1, 1.0), (2, 0.51)], [], []])
    x, y, pools = operands(TILES, 1, seed=0)
    due = expected(runs, 0, x, y, *pools[0])
    assert all(np.abs(due - expected(other, 0, x, y, *pools[0])).max() > 1e-3 for other in others)


@IMPLEMENTATIONS
def test_modules_that_share_their_input_are_one_call(lora: Lora) -> None:
    runs: list[Runs] = [[[(1, 1.0)], [], [(3, 2.0)]], [[], [], []], [[(2, 0.5), (4, 1.0)], [(5, -1.0)], []]]
    x, y, pools = operands(TILES, 1, seed=2, widths=(16, 40, 8))
    order = (2, 0, 1)
    added = add(lora, (x, y, pools), 1, work_list(*runs), order)
    due = [
        expected(runs[module], 1, x, part, *pool)
        for module, part, pool in zip(order, parted(y, pools), pools, strict=True)
    ]
    np.testing.assert_allclose(added, np.concatenate(due, axis=2), atol=1e-4)


@IMPLEMENTATIONS
def test_pages_that_no_item_names_are_never_read(lora: Lora) -> None:
    runs: Runs = [[(1, 1.0)], [], [(2, 0.5), (1, -1.0)]]
    x, y, pools = operands(TILES, 1, seed=3)
    poisoned = np.setdiff1d(np.arange(PAGES), [1, 2])
    a, b = (part.at[:, poisoned].set(np.nan) for part in pools[0])
    assert np.isfinite(add(lora, (x, y, ((a, b),)), 0, work_list(runs))).all()


@IMPLEMENTATIONS
def test_a_row_gets_the_same_bits_whoever_shares_its_batch(lora: Lora) -> None:
    mine = [(1, 1.0), (3, -0.5)]
    arrays = operands(TILES, 1, seed=4)
    alone = add(lora, arrays, 1, work_list([[], mine, []]))
    together = add(lora, arrays, 1, work_list([[(2, 1.0)] * 3, mine, [(5, 2.0)]]))
    np.testing.assert_array_equal(alone[1], together[1])
    np.testing.assert_array_equal(alone[0], arrays[1][0])


@pytest.mark.parametrize("lora", [reference.lora, xla.lora], ids=["reference", "xla"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_list_adds_nothing_of_other_pages(lora: Lora, kind: str) -> None:
    """The kernels have this test of their own, by where tiles start."""
    work, runs = broken_runs(kind, by_tile=True)
    x, y, pools = operands(TILES, 1, seed=6)
    np.testing.assert_allclose(add(lora, (x, y, pools), 1, work), expected(runs, 1, x, y, *pools[0]), atol=1e-4)


@EMBEDDING_IMPLEMENTATIONS
@pytest.mark.parametrize("page", [-1, PAGES])
def test_embedding_lora_of_a_page_that_is_not_there_adds_nothing(embedding_lora: EmbeddingLora, page: int) -> None:
    _, y, ((a, b),) = operands(1, 4, seed=7)
    tokens = jnp.array([[3, 5, 0, 7]], jnp.int32)
    added = embedding_lora(tokens, y, (a[:1], b[:1]), work_list([[(page, 1.0)]]), 0)
    np.testing.assert_array_equal(added, y)


@EMBEDDING_IMPLEMENTATIONS
def test_embedding_lora_looks_up_columns(embedding_lora: EmbeddingLora) -> None:
    generator = np.random.default_rng(5)
    runs: Runs = [[(1, 1.0)], [(2, 0.5), (3, 2.0)]]
    a, b = generator.normal(size=(1, PAGES, RANK, 50)), generator.normal(size=(1, PAGES, RANK, 24))
    tokens, y = generator.integers(0, 50, (2, 16)), generator.normal(size=(2, 16, 24))
    wide = [jnp.asarray(array, jnp.float32) for array in (y, a, b)]
    added = jax.jit(embedding_lora, static_argnames="module")(
        jnp.asarray(tokens, jnp.int32), wide[0], (wide[1], wide[2]), work_list([[], []], runs), module=1
    )
    np.testing.assert_allclose(added, expected(runs, 0, np.eye(50)[tokens], y, a, b), atol=1e-4)
