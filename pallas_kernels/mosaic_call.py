"""The door to Mosaic, Pallas' other backend for NVIDIA GPUs: what is alike in every kernel that goes through it.

A program is one warpgroup, 128 threads, and a kernel says for every array how it lies in their registers. Arrays are
whole here as well, with their places computed in the kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array, ShapeDtypeStruct
from jax.experimental.pallas import mosaic_gpu as plgpu

Ref = Any
Layout = Any


def mosaic_call(
    kernel: Callable[..., None],
    out_shape: ShapeDtypeStruct,
    *,
    grid: Mapping[str, int],
    scratch: tuple[Any, ...] = (),
    interpret: bool = False,
) -> Callable[..., Array]:
    """A launch: the kernel gets a reference to each input, one to the output, then one to each scratch.

    Args:
        kernel: what each program runs; its name is the launch's, in profiles and dumps.
        out_shape: of the output.
        grid: programs along each axis, by the name that `jax.lax.axis_index` takes.
        scratch: shared memory of a program.
        interpret: run it by JAX's interpreter of such kernels, on any device; from JAX 0.11 on.
    """
    called: Callable[..., Array] = plgpu.kernel(
        kernel,
        out_type=out_shape,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
    )
    return called


def load(ref: Ref, layout: Layout) -> Array:
    """What a reference, cut by `.at`, holds, in registers; not by the special ways out of swizzled shared memory."""
    place = ((),) if jax.__version_info__ < (0, 11) else ()  # an index was to be given, though it has been
    loaded: Array = plgpu.load(ref, *place, layout=layout, optimized=False)
    return loaded
