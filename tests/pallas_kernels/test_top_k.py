"""Every implementation of `top_k` against a stable sort, on ordinary, tied and infinite values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.top_k import reference, xla
from pallas_kernels.top_k.api import TopK

IMPLEMENTATIONS = pytest.mark.parametrize(
    "top_k", [reference.top_k, xla.by_rows, xla.by_blocks], ids=["reference", "by_rows", "by_blocks"]
)


@IMPLEMENTATIONS
@pytest.mark.parametrize("width", [5, 900, 4096, 5001])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), ties=st.booleans(), dead=st.integers(0, 4))
def test_the_greatest_come_first_and_of_equals_the_first(
    top_k: TopK, width: int, seed: int, ties: bool, dead: int
) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(3, width)).astype(np.float32) * 3
    x = np.round(x) + 0.0 if ties else x  # a negative zero is less than zero to a selection
    x[:, generator.random(width) < dead / 4] = -np.inf
    k = min(width, 9)
    values, columns = jax.jit(top_k, static_argnums=1)(jnp.asarray(x), k)
    due = np.argsort(-x, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(columns, due)
    np.testing.assert_array_equal(values, np.take_along_axis(x, due, axis=1))


def test_blocks_sort_little() -> None:
    """Against a sort of the rows, which is what XLA:GPU makes of a selection."""
    program = str(jax.make_jaxpr(lambda x: xla.by_blocks(x, 64))(jax.ShapeDtypeStruct((64, 128256), jnp.float32)))
    assert program.count("top_k[") == 2
    selected_from = re.findall(r"top_k\[.*?\] (\w+)", program, re.DOTALL)
    widths = [int(width) for name in selected_from for width in re.findall(rf"\b{name}:f32\[64,(\d+)\]", program)]
    assert sorted(set(widths)) == [2048, 4008]
