"""Every implementation of `threshold` keeps the tokens that sorting the row keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import ShapeDtypeStruct
from numpy.typing import NDArray

from pallas_kernels.threshold import pallas_triton, reference, xla
from pallas_kernels.threshold.api import Threshold
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.real import INTERPRET

ROWS = 3
EDGE = 1e-4
"""Of a row's mass: float32 decides on either side of an edge that is closer."""
IMPLEMENTATIONS = pytest.mark.parametrize(
    "threshold",
    [reference.threshold, xla.threshold, partial(pallas_triton.threshold, interpret=INTERPRET)],
    ids=["reference", "xla", "pallas_triton"],
)


def kept(weights: NDArray[np.float32], top_k: int, top_p: float) -> NDArray[np.bool_]:
    """Of one row, in float64."""
    ordered = np.sort(weights.astype(np.float64))[::-1]
    ordered = ordered[ordered >= ordered[top_k - 1]]
    if top_p < 1:
        sums = np.cumsum(ordered)
        ordered = ordered[: np.argmax(sums >= top_p * sums[-1]) + 1]
    least: NDArray[np.bool_] = weights >= ordered[-1]
    return least


@IMPLEMENTATIONS
@pytest.mark.parametrize("width", [40, 5000])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_what_is_kept(threshold: Threshold, width: int, data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    weights = (generator.random((ROWS, width)) ** data.draw(st.sampled_from([1, 8]))).astype(np.float32)
    if data.draw(st.booleans()):
        weights = np.round(weights, 1)
    weights[:, 7] = 1
    top_k = np.array([data.draw(st.sampled_from([1, 2, width // 2, width])) for _ in range(ROWS)], np.int32)
    top_p = np.array([data.draw(st.sampled_from([1.0, 0.9, 0.5, 0.001])) for _ in range(ROWS)], np.float32)
    settled = np.array([False, False, True])
    found = np.asarray(jax.jit(threshold)(*map(jnp.asarray, (weights, top_k, top_p, settled))))
    for row in range(2):
        mine = weights[row] >= found[row]
        slack = EDGE if top_p[row] < 1 else 0
        assert (kept(weights[row], top_k[row], top_p[row] - slack) <= mine).all()
        assert (mine <= kept(weights[row], top_k[row], top_p[row] + slack)).all()
    assert found[2] == 0


@IMPLEMENTATIONS
def test_tokens_that_are_all_but_equal_are_told_apart(threshold: Threshold) -> None:
    weights = np.random.default_rng(422).random((1, 5000)).astype(np.float32)
    weights[:, 7] = 1
    edge = np.sort(weights[0])[-700]
    weights[0, np.flatnonzero(weights[0] == edge)[0] - 1] = np.nextafter(edge, np.float32(0))
    ordered = np.sort(weights[0].astype(np.float64))[::-1]
    top_p = np.float32((ordered[:699].sum() + edge / 2) / ordered.sum())
    found = np.asarray(jax.jit(threshold)(weights, np.array([5000]), np.array([top_p]), np.array([False])))
    assert (weights[0] >= found[0]).sum() == 700


def test_one_launch_serves_all_rows() -> None:
    lowered = lower_cuda(
        pallas_triton.threshold,
        ShapeDtypeStruct((64, 128256), jnp.float32),
        ShapeDtypeStruct((64,), jnp.int32),
        ShapeDtypeStruct((64,), jnp.float32),
        ShapeDtypeStruct((64,), jnp.bool_),
    )
    assert sum(triton_kernels(lowered).values()) == 1
    assert "stablehlo.while" not in lowered.as_text()
