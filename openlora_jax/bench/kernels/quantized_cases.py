"""Cases of `quantized_linear`, the products of a quantised base model in decode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from openlora_jax.adapters.modules import module_shapes
from openlora_jax.bench.kernels.case import PERIOD, Case, Step, layers_beyond, x_and_y
from openlora_jax.bench.kernels.workload import GROUPS, Workload
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import QuantizedMatrix, dense, described
from pallas_kernels.layers import LayerIndex
from pallas_kernels.linear.api import Linear
from pallas_kernels.quantized import Nf4Matrix
from pallas_kernels.quantized_linear import reference
from pallas_kernels.quantized_linear.api import QuantizedLinear
from pallas_kernels.registry import Ops

FORMATS = (
    Quantization(format="int8", group=32),
    Quantization(format="int4", group=32, offsets="float16"),
    Quantization(format="int4", group=32),
    Quantization(format="int4", group=128, offsets="float16"),
    Quantization(format="nf4", group=64),
)
"""As GGUF's Q8_0, Q4_1 and Q4_0, as GPTQ and AWQ, and as QLoRA have it."""

Weights = tuple[QuantizedMatrix, ...]
Operands = tuple[Array, dict[str, Any]]


def quantized_linear_case(workload: Workload, ops: Ops, cache: int, group: str, how: Quantization) -> Case:
    """The joined matrix of a group in a format of `FORMATS`; beside it XLA's product of the same numbers, in full."""
    tiles, tokens = workload.tiles("decode")
    shapes = [module_shapes(workload.model)[module] for module in GROUPS[group]]
    d_in, d_out, itemsize = shapes[0].d_in, sum(shape.d_out for shape in shapes), jnp.dtype(workload.dtype).itemsize
    spec = described((d_out, d_in), how)
    weight_bytes = sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(spec))
    layers = layers_beyond(cache, weight_bytes, workload.model.num_layers)
    weights: Weights = tuple(_random(seed, spec) for seed in range(layers))
    x, y = x_and_y((tiles, tokens), d_in, d_out, workload.dtype)
    return Case(
        op=f"quantized linear decode, {how}, {group}",
        operands=(
            (
                x,
                {
                    "own": ops.quantized_layers(weights),
                    "codes": weights,
                    "numbers": tuple(dense(weight).astype(workload.dtype) for weight in weights),
                },
            ),
        ),
        carry=y,
        calls=layers,
        over_layers=ops.over_layers,
        reference=_step(reference.linear, "codes"),
        steps={
            ops.chosen["quantized_linear"].name: _step(ops.linear, "own"),
            "numbers first": _step(reference.linear, "codes"),
            "dense": _step(ops.linear, "numbers"),
        },
        nbytes=weight_bytes + itemsize * (x.size + 2 * y.size),
        footprint=weight_bytes * layers,
        operations=2 * x.size * d_out,
    )


def _random(seed: int, spec: QuantizedMatrix) -> QuantizedMatrix:
    """A matrix of random codes and factors, whose products are about as large as what they are added to."""
    generator = np.random.default_rng(seed)
    # That of nf4 is multiplied by squares of up to 255.
    factor = 2**-20 if isinstance(spec, Nf4Matrix) else 2**-8

    def part(like: jax.ShapeDtypeStruct) -> Array:
        if like.dtype.itemsize == 1:
            drawn = generator.integers(0, 256, PERIOD, np.uint8).view(like.dtype)
        else:
            drawn = (factor * generator.uniform(0.5, 1.5, PERIOD)).astype(like.dtype)
        return jnp.asarray(np.resize(drawn, like.shape))

    matrix: QuantizedMatrix = jax.tree.map(part, spec)
    return matrix


def _step(linear: Linear | QuantizedLinear, which: str) -> Step:
    def step(operands: Operands, layer: LayerIndex, y: Array) -> Array:
        x, weights = operands
        return y + linear(x, weights[which], layer)

    return step
