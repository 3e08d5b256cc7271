"""Lowering for a GPU on a machine that has none."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Lowered


def target(kind: str) -> contextlib.AbstractContextManager[Any]:
    """The device that is lowered for, by its kind. JAX before 0.11 asks for none."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def lower_cuda(fn: Callable[..., Any], *args: Any, kind: str = "NVIDIA H100", donated: tuple[int, ...] = ()) -> Lowered:
    """`fn` for CUDA; `args` may be shapes, `donated` are positions among them."""
    with target(kind):
        traced = jax.jit(fn, donate_argnums=donated).trace(*args)
        lowered: Lowered = traced.lower(lowering_platforms=("cuda",))
    return lowered


def triton_kernels(lowered: Lowered) -> Counter[str]:
    """How often each Pallas-Triton kernel is called, by its name."""
    return Counter(re.findall(r'name = "(\w+)", num_stages', lowered.as_text()))


def mosaic_kernels(lowered: Lowered) -> list[str]:
    """The code of each launch of a Pallas-Mosaic kernel, in order."""
    return re.findall(r'@mosaic_gpu_v2\(.*?module = "(.*?)"', lowered.as_text())
