"""Each format against its description in float64, and against the error that rounding to its codes may make."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openlora_jax.quantization.format import Format, Quantization, problem
from openlora_jax.quantization.matrix import described
from openlora_jax.quantization.quantize import quantize
from pallas_kernels.quantized import NF4, Nf4Matrix, dense, group_of, looked_up, shape_of
from tests.openlora_jax.quantization.oracle import numbers

WAYS = [
    *(Quantization(format="int8", group=group) for group in (32, 64, 128, None)),
    *(Quantization(format="int4", group=group) for group in (32, 128)),
    *(Quantization(format="int4", group=group, offsets="float16") for group in (32, 64, 128, None)),
    Quantization(format="int4", group=32, offsets="float32"),
    *(Quantization(format="nf4", group=group) for group in (32, 64, 128)),
]
ways = pytest.mark.parametrize("how", WAYS, ids=str)
HALF = 2.0**-11
"""What rounding to float16 may change, relatively."""


def matrix(seed: int, rows: int = 3, columns: int = 160, heavy: bool = False) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    drawn = generator.standard_t(2, (rows, columns)) if heavy else generator.normal(size=(rows, columns))
    return (0.05 * drawn).astype(np.float32)


def group_size(how: Quantization, columns: int) -> int:
    return how.group or columns


@ways
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), columns=st.sampled_from([32, 96, 160, 256]), heavy=st.booleans())
def test_numbers_are_those_of_the_description(how: Quantization, seed: int, columns: int, heavy: bool) -> None:
    found = quantize(matrix(seed, columns=columns, heavy=heavy), how)
    assert shape_of(found) == (3, columns)
    assert group_of(found) == min(group_size(how, columns), columns)
    exact = numbers(found, group_size(how, columns))
    np.testing.assert_allclose(dense(found), exact, rtol=3e-7, atol=1e-9)


@ways
@pytest.mark.parametrize("heavy", [False, True])
def test_every_number_is_rounded_to_the_nearest(how: Quantization, heavy: bool) -> None:
    """Nearest to what the group's scale allows: half a step of its code, and what float16 makes of scale and offset."""
    values = matrix(7, rows=8, heavy=heavy)
    error = np.abs(numbers(quantize(values, how), group_size(how, values.shape[1])) - values)
    for first in range(0, values.shape[1], group_size(how, values.shape[1])):
        group = values[:, first : first + group_size(how, values.shape[1])].astype(np.float64)
        bound = allowed(group, how, np.abs(values).max(axis=1, keepdims=True))
        assert (error[:, first : first + group.shape[1]] <= bound * (1 + 1e-5)).all()


def allowed(group: NDArray[np.float64], how: Quantization, row: NDArray[np.float32]) -> Any:
    """The greatest error of the numbers of a group, by row; `row` is the greatest number of each."""
    furthest = np.abs(group).max(axis=1, keepdims=True)
    span = group.max(axis=1, keepdims=True) - group.min(axis=1, keepdims=True)
    if how.format == "int8":
        return furthest * (1 / 254 + HALF)
    if how.format == "nf4":
        # Half of the widest gap between levels, and what the scale's own 8 bits are off: less than that in a row.
        return furthest * (1 - 0.6961928) / 2 + row / 255
    if how.offsets is None:
        return furthest * (1 / 8 + 8 * HALF)  # the greatest of the other sign may be 8 steps, of which there are 7
    return span * (1 / 30 + 8 * HALF) + furthest * HALF


@ways
def test_zeros_stay_zeros_and_are_finite(how: Quantization) -> None:
    values = matrix(1)
    values[1] = 0
    values[2, :64] = 0
    found = np.asarray(dense(quantize(values, how)))
    assert np.isfinite(found).all()
    assert (found[1] == 0).all()


@ways
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e9])
def test_what_does_not_fit_leaves_a_scale_that_is_not_finite(how: Quantization, value: float) -> None:
    values = matrix(2)
    values[1, 40] = value
    found = quantize(values, how)
    finite = all(np.isfinite(part).all() for part in jax.tree.leaves(found))
    assert finite == (how.format == "nf4" and value == 3e9), "nf4 alone has a step of 32 bits"


def test_levels_are_chosen_by_distance() -> None:
    values = np.linspace(-1, 1, 32, dtype=np.float32)[None]
    found = np.asarray(dense(quantize(values, Quantization(format="nf4", group=32))))
    nearest = np.array(NF4)[np.abs(values[0][:, None] - np.array(NF4)).argmin(axis=1)]
    np.testing.assert_allclose(found[0], nearest, rtol=1e-6)


def test_scales_of_small_groups_are_finer() -> None:
    """A row whose one group is a hundred times as large as the others."""
    values = matrix(3, rows=16, columns=256)
    values[:, 64:] /= 100
    found = quantize(values, Quantization(format="nf4", group=64))
    assert isinstance(found, Nf4Matrix)
    largest = np.abs(values.reshape(16, 4, 64)).max(axis=2)
    scale = found.step[:, None] * np.square(found.scale.astype(np.float32))
    np.testing.assert_allclose(scale, largest, rtol=0.05)


@ways
def test_rows_of_a_matrix_are_rows_of_its_arrays(how: Quantization) -> None:
    values = matrix(4, rows=6)
    whole = quantize(values, how)
    np.testing.assert_array_equal(dense(quantize(values[2:5], how)), dense(whole)[2:5])
    rows = np.array([[5, 0], [2, 2]])
    found = looked_up(jax.tree.map(jax.numpy.asarray, whole), jax.numpy.asarray(rows), "bfloat16")
    np.testing.assert_array_equal(found, dense(whole).astype("bfloat16")[rows])


@ways
def test_arrays_are_as_described(how: Quantization) -> None:
    values = matrix(5)
    assert problem(values.shape[1], how) is None
    found, expected = quantize(values, how), described(values.shape, how)
    assert type(found) is type(expected)
    assert [(part.shape, part.dtype) for part in jax.tree.leaves(found)] == [
        (part.shape, part.dtype) for part in jax.tree.leaves(expected)
    ]


@pytest.mark.parametrize("name", ["int4", "nf4"])
def test_columns_that_cannot_be_packed(name: Format) -> None:
    assert "48 columns are not a multiple of the 32" in str(problem(48, Quantization(format=name, group=32)))
    assert problem(48, Quantization(format="int8", group=32)) is None


def test_offsets_are_of_int4_alone() -> None:
    with pytest.raises(ValueError, match="nf4 has no offsets"):
        Quantization(format="nf4", group=64, offsets="float16")
