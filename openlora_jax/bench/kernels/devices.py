"""What a device can do at best: from its data sheet where it is known, else measured."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from openlora_jax.config import Dtype

UNKNOWN_CACHE = 64 * 1024**2
"""More than one process has of most chips: what a CPU has in all, many of them share."""
MEASURED_BYTES = 256 * 1024**2
"""What bandwidth is measured on."""
REPEATS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The limits of a device.

    Attributes:
        source: "data sheet" or "measured".
        bandwidth: of its memory, bytes a second.
        flops: operations a second of dense products in the dtype asked for, sums in float32.
        cache: the largest one, in bytes.
    """

    source: str
    bandwidth: float
    flops: float
    cache: int

    def floor(self, nbytes: int, operations: int) -> tuple[float, str]:
        """The least seconds that so much takes, and which of the two it is that takes them."""
        moving, computing = nbytes / self.bandwidth, operations / self.flops
        return (moving, "bytes") if moving >= computing else (computing, "FLOPs")


@dataclass(frozen=True, slots=True)
class DataSheet:
    """GB/s, and TFLOP/s without sparsity; float32 is that of the plain cores, not TF32."""

    kind: str
    bandwidth: float
    bfloat16: float
    float32: float
    cache_mb: int


DATA_SHEETS = (
    DataSheet("A100-SXM4-40GB", 1555.0, 312.0, 19.5, 40),
    DataSheet("A100-PCIE-40GB", 1555.0, 312.0, 19.5, 40),
    DataSheet("A100-SXM4-80GB", 2039.0, 312.0, 19.5, 40),
    DataSheet("A100 80GB PCIe", 1935.0, 312.0, 19.5, 40),
    DataSheet("H100 80GB HBM3", 3352.0, 989.0, 67.0, 50),
    DataSheet("H100 PCIe", 2039.0, 756.0, 51.0, 50),
    DataSheet("H100 NVL", 3938.0, 835.0, 60.0, 50),
    DataSheet("H200", 4800.0, 989.0, 67.0, 50),
    DataSheet("B200", 8000.0, 2250.0, 80.0, 126),
    DataSheet("L40S", 864.0, 362.0, 91.6, 96),
    DataSheet("L4", 300.0, 121.0, 30.3, 48),
    DataSheet("A10G", 600.0, 70.0, 35.0, 6),
    DataSheet("RTX 3090", 936.0, 71.0, 35.6, 6),
    DataSheet("RTX 4090", 1008.0, 165.0, 82.6, 72),
)
"""By what JAX's `device_kind` contains, as whole words: an L40 is no L4, and a GH200 no H200."""


def peak(device: jax.Device, dtype: Dtype) -> Peak:
    """The limits of a device for products in a dtype; measures on JAX's default device."""
    return listed(device.device_kind, dtype) or measured(device.platform, dtype)


def listed(kind: str, dtype: Dtype) -> Peak | None:
    """What the data sheet says, if there is one."""
    sheet = next((sheet for sheet in DATA_SHEETS if re.search(rf"\b{sheet.kind}\b", kind)), None)
    if sheet is None:
        return None
    return Peak(
        source="data sheet",
        bandwidth=1e9 * sheet.bandwidth,
        flops=1e12 * {"bfloat16": sheet.bfloat16, "float32": sheet.float32}[dtype],
        cache=sheet.cache_mb * 1024**2,
    )


def measured(platform: str, dtype: Dtype) -> Peak:
    """The best of some repeats, on the default device: of reading and of copying, and of a square product."""
    return Peak(
        source="measured",
        bandwidth=_bandwidth(),
        flops=_flops(1024 if platform == "cpu" else 8192, dtype),
        cache=UNKNOWN_CACHE,
    )


def _bandwidth() -> float:
    width = 4096
    array = jnp.ones((MEASURED_BYTES // 4 // width, width), jnp.float32)
    reading = _seconds(jax.jit(lambda array: array.sum(axis=1)), array)
    copying = _seconds(jax.jit(lambda array: array + 1), array)
    return max(MEASURED_BYTES / reading, 2 * MEASURED_BYTES / copying)


def _flops(size: int, dtype: Dtype) -> float:
    def product(left: Array) -> Array:
        return jnp.matmul(left, left, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)

    return 2 * size**3 / _seconds(jax.jit(product), jnp.ones((size, size), dtype))


def _seconds(function: Callable[[Array], Any], operand: Array) -> float:
    jax.block_until_ready(function(operand))

    def once() -> float:
        began = time.perf_counter()
        jax.block_until_ready(function(operand))
        return time.perf_counter() - began

    return min(once() for _ in range(REPEATS))
