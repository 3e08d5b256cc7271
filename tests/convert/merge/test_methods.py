"""The methods on small tensors, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convert.merge.methods import (
    Combination,
    agrees_with_majority,
    decomposed,
    decomposed_product,
    factor_weights,
)
from openlora_jax.adapters.recipe import Rule

VALUES = st.floats(-4, 4, width=16)
TENSORS = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=VALUES)


def f32(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


@pytest.mark.parametrize(("how", "elected"), [("total", 1), ("frequency", -1)])
def test_the_majority(how: str, elected: int) -> None:
    """By the sum 5 - 1 - 1 is positive, by the count it is negative; zeros agree with nobody."""
    stacked = f32([5, 0], [-1, 0], [-1, 0])
    expected = [[elected > 0, False], [elected < 0, False], [elected < 0, False]]
    np.testing.assert_array_equal(agrees_with_majority(stacked, how), expected)  # type: ignore[arg-type]


def test_a_sum_of_zero_elects_the_positive() -> None:
    np.testing.assert_array_equal(agrees_with_majority(f32([2], [-2]), "total"), [[True], [False]])


def test_ties_by_hand() -> None:
    """Pruned to [4, 0, -3], [-2, 5, 0]; +, +, - are elected; each value is the mean of those that agree, weighted."""
    tensors = [f32(4, 1, -3), f32(-2, 5, 1)]
    merged = Combination("ties", 0.7)(tensors, [0.5, 2.0])
    np.testing.assert_array_equal(merged, f32(2, 10, -1.5))
    both = Combination("ties", 1.0)(tensors, [0.5, 2.0])
    np.testing.assert_array_equal(both, f32(2, (0.5 + 10) / 2, -1.5))


def test_dare_by_hand() -> None:
    tensors, masks = [f32(1, 2), f32(3, -4)], [np.array([True, False]), np.array([True, True])]
    np.testing.assert_array_equal(Combination("dare_linear", 0.5)(tensors, [1.0, 0.5], masks), f32(2 + 3, -4))
    np.testing.assert_array_equal(Combination("dare_ties", 0.5)(tensors, [1.0, 0.5], masks), f32((2 + 3) / 2, -4))


@pytest.mark.parametrize("rule", ["linear", "dare_linear", "magnitude_prune"])
@given(tensor=TENSORS, weights=st.tuples(VALUES, VALUES))
def test_density_1_prunes_nothing(rule: Rule, tensor: np.ndarray, weights: tuple[float, float]) -> None:
    merged = Combination(rule, 1.0)([tensor, tensor[::-1]], weights)
    expected = np.float32(weights[0]) * tensor + np.float32(weights[1]) * tensor[::-1]
    np.testing.assert_allclose(merged, expected, atol=1e-5)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_both_factors_take_their_share(weight: float, scale: float) -> None:
    of_a, of_b = factor_weights(weight, scale)
    assert of_a * of_b == pytest.approx(weight * scale)
    assert of_b >= 0
    assert abs(of_a) == of_b


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_a_decomposition_is_the_nearest_of_its_rank(shape: tuple[int, int], rank: int) -> None:
    delta = np.random.default_rng(rank).standard_normal(shape, np.float32)
    a, b = decomposed(delta, rank)
    assert a.dtype == b.dtype == np.float32
    assert len(a) == len(b) == min(rank, *shape)
    u, s, vh = np.linalg.svd(delta.astype(np.float64))
    kept = len(a)
    np.testing.assert_allclose(b.T @ a, (u[:, :kept] * s[:kept]) @ vh[:kept], atol=1e-5)


@pytest.mark.parametrize(("ranks", "rank"), [(4, 2), (4, 4), (4, 9), (12, 3)])
def test_a_product_is_decomposed_without_making_it(ranks: int, rank: int) -> None:
    generator = np.random.default_rng(ranks)
    a, b = generator.standard_normal((ranks, 7), np.float32), generator.standard_normal((ranks, 10), np.float32)
    got_a, got_b = decomposed_product(a, b, rank)
    assert len(got_a) == min(ranks, rank, 7)
    whole_a, whole_b = decomposed(b.T @ a, rank)
    np.testing.assert_allclose(got_b.T @ got_a, whole_b.T @ whole_a, atol=1e-4)


def test_a_rank_beyond_that_of_the_delta_adds_nothing() -> None:
    delta = np.outer(np.arange(1, 6), np.arange(1, 5)).astype(np.float32)
    a, b = decomposed(delta, 3)
    np.testing.assert_allclose(b.T @ a, delta, rtol=1e-6, atol=1e-5)
    assert math.isclose(np.linalg.norm(b[0]) * np.linalg.norm(a[0]), np.linalg.norm(delta), rel_tol=1e-6)
