"""The door to Pallas' Triton lowering: what is alike in every kernel that goes through it.

Kernels get whole arrays and mask for themselves: blocks that do not divide an array read past its end without a word
(JAX 0.10), and there is no scalar prefetch, so whatever depends on data is loaded inside the kernel anyway.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Float, Float32

DEPRECATED = (
    "The Pallas Triton backend is deprecated and will be removed in a future JAX version. To keep using Pallas on GPU,"
    " please migrate to the Mosaic GPU backend. To keep using Triton, switch to the official Triton bindings and"
    " jax_triton."
)
"""What lowering warns of, from JAX 0.11 on."""


def triton_call(
    kernel: Callable[..., None],
    out_shape: ShapeDtypeStruct | tuple[ShapeDtypeStruct, ...],
    *,
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    input_output_aliases: Mapping[int, int] | None = None,
    interpret: bool = False,
) -> Callable[..., Any]:
    """`pl.pallas_call` with whole arrays: the kernel gets a reference to each input, then one to each output.

    Args:
        kernel: what each program runs; its name is the launch's, in profiles and dumps.
        out_shape: of the output, or of each.
        grid: programs along each axis; neighbours on the first one run side by side.
        warps: of 32 threads, a program.
        stages: of a loop's software pipeline; what is loaded ahead takes shared memory.
        input_output_aliases: input that the output is written over -> 0.
        interpret: run it as plain XLA operations, on any device.
    """
    # Lowering is long after this returns, so no context can hold the filter.
    warnings.filterwarnings("ignore", f"{re.escape(DEPRECATED)}$", DeprecationWarning)
    called: Callable[..., Any] = pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid=grid,
        input_output_aliases=dict(input_output_aliases or {}),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=kernel.__name__,
    )
    return called


def dot(left: Float[Array, "X I"], right: Float[Array, "I O"]) -> Float32[Array, "X O"]:
    """Summed in float32. Without being told otherwise, float32 itself would be rounded to TF32's 10 bits first."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)
