"""Every implementation of `quantized_linear` against numpy in float64, and what the kernel takes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import ShapeDtypeStruct

from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import described
from openlora_jax.quantization.quantize import quantize
from pallas_kernels.quantized import QuantizedMatrix, dense
from pallas_kernels.quantized_linear import pallas_triton, reference, xla
from pallas_kernels.quantized_linear.api import QuantizedLinear
from pallas_kernels.quantized_linear.config import MOST_ROWS, QuantizedLinearConfig, quantized_linear_config
from pallas_kernels.registry import implementations
from tests.gpu.lowering import lower_cuda, triton_kernels
from tests.pallas_kernels.real import INTERPRET

WAYS = [
    Quantization(format="int8", group=32),
    Quantization(format="int8", group=None),
    Quantization(format="int4", group=32),
    Quantization(format="int4", group=32, offsets="float16"),
    Quantization(format="int4", group=128, offsets="float16"),
    Quantization(format="int4", group=None, offsets="float32"),
    Quantization(format="nf4", group=64),
]
ways = pytest.mark.parametrize("how", WAYS, ids=str)
kernel = partial(pallas_triton.linear, interpret=INTERPRET)
implementation = pytest.mark.parametrize(
    "linear", [reference.linear, xla.linear, kernel], ids=["reference", "xla", "pallas_triton"]
)


def matrices(how: Quantization, layers: int, outs: int, columns: int, seed: int) -> tuple[QuantizedMatrix, ...]:
    generator = np.random.default_rng(seed)
    drawn = generator.normal(size=(layers, outs, columns)).astype(np.float32)
    return tuple(jax.tree.map(jnp.asarray, quantize(each, how)) for each in drawn)


@implementation
@ways
@settings(deadline=None, max_examples=2)
@given(
    tiles=st.sampled_from([1, 4, 17]),
    tokens=st.sampled_from([1, 16]),
    outs=st.sampled_from([20, 64, 130]),
    columns=st.sampled_from([32, 160, 288]),
    layer=st.integers(0, 2),
)
def test_linear_multiplies_by_the_layer_asked_for(
    linear: QuantizedLinear, how: Quantization, tiles: int, tokens: int, outs: int, columns: int, layer: int
) -> None:
    x = np.random.default_rng(columns).normal(size=(tiles, tokens, columns)).astype(np.float32)
    weights = matrices(how, 3, outs, columns, seed=outs)
    y = jax.jit(linear)(jnp.asarray(x), weights, jnp.int32(layer))
    exact = x.astype(np.float64) @ np.asarray(dense(weights[layer]), np.float64).T
    np.testing.assert_allclose(y, exact, atol=2e-4)


@implementation
@ways
def test_bfloat16(linear: QuantizedLinear, how: Quantization) -> None:
    """Numbers of W are rounded to it; sums are not."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 160)), jnp.bfloat16)
    (weight,) = matrices(how, 1, 48, 160, seed=1)
    y = jax.jit(linear)(x, (weight,), jnp.int32(0))
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64) @ np.asarray(dense(weight), np.float64).T
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=0.1)


@pytest.mark.parametrize("backend", ["cpu", "cuda", "tpu", "interpret"])
def test_linear_of_a_backend_takes_either(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the weights are; shapes alone, since not every backend can run here."""
    linear = implementations(backend).linear
    x = ShapeDtypeStruct((2, 1, 64), jnp.float32)
    for weight in (ShapeDtypeStruct((20, 64), jnp.float32), described((20, 64), WAYS[2])):
        y = jax.eval_shape(lambda x, w: linear(x, (w,), np.asarray(0, np.int32)), x, weight)
        assert y.shape == (2, 1, 20)


@ways
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_one_launch(how: Quantization, dtype: str) -> None:
    def product(x: Any, weight: Any) -> Any:
        return pallas_triton.linear(x, (weight,), np.asarray(0, np.int32))

    x, many = (ShapeDtypeStruct((rows, 1, 4096), dtype) for rows in (64, MOST_ROWS + 1))
    weight = described((6144, 4096), how)
    assert triton_kernels(lower_cuda(product, x, weight)) == {"quantized_linear_kernel": 1}
    assert triton_kernels(lower_cuda(product, many, weight)) == {}


@pytest.mark.parametrize(
    ("columns", "dtype", "problem"),
    [
        (96, "float32", "the columns of x, of W differ: 96 and 64"),
        (64, "float16", "dtype float16 of x: must be float32 or bfloat16"),
    ],
)
def test_what_the_kernel_does_not_serve(columns: int, dtype: str, problem: str) -> None:
    (weight,) = matrices(WAYS[2], 1, 16, 64, seed=0)
    with pytest.raises(ValueError, match=problem):
        kernel(jnp.ones((1, 1, columns), dtype), (weight,), np.asarray(0, np.int32))


def test_codes_whose_offsets_would_be_negative_are_refused() -> None:
    weight = described(((1 << 16) + 16, 1 << 15), Quantization(format="int8", group=None))
    x = ShapeDtypeStruct((1, 1, 1 << 15), jnp.bfloat16)
    with pytest.raises(ValueError, match="codes of a matrix: 2,148,007,936 bytes; must be less than 2,147,483,649"):
        jax.eval_shape(lambda x, w: pallas_triton.linear(x, (w,), np.asarray(0, np.int32)), x, weight)


def test_programs_spread_over_the_chip() -> None:
    assert quantized_linear_config(1, 28672).outs == 64
    assert quantized_linear_config(16, 4096).outs == 32
    assert quantized_linear_config(16, 576).outs == 16
    with pytest.raises(ValueError, match="columns of a product: 8; must be a power of two, 16 or more"):
        QuantizedLinearConfig(rows=16, outs=16, block=8, warps=4, stages=1)
