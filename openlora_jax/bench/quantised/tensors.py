"""What rounding costs single matrices, beside other people's formats: bitsandbytes' and torchao's, where installed."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import dense
from openlora_jax.quantization.quantize import quantize

F32: TypeAlias = NDArray[np.float32]
Rounding = Callable[[F32], F32]
"""A matrix, as a format holds it."""

ROWS, COLUMNS = 1024, 1024
TAILS = {"Gaussian": None, "Student's t, 8 degrees of freedom": 8, "Student's t, 3 degrees of freedom": 3}
"""Distributions of a weight, the heavier tails the fewer degrees of freedom."""

OURS = {
    "int8, groups of 32": Quantization(format="int8", group=32),
    "int8, whole rows": Quantization(format="int8", group=None),
    "nf4, groups of 64": Quantization(format="nf4", group=64),
    "int4 with offsets, groups of 32": Quantization(format="int4", group=32, offsets="float16"),
    "int4 with offsets, groups of 64": Quantization(format="int4", group=64, offsets="float16"),
    "int4 with offsets, groups of 128": Quantization(format="int4", group=128, offsets="float16"),
    "int4 symmetric, groups of 32": Quantization(format="int4", group=32),
}


def errors() -> dict[str, dict[str, float]]:
    """Format -> distribution -> the error's root mean square over that of the weights."""
    found: dict[str, dict[str, float]] = {}
    for name, tail in TAILS.items():
        matrix = sample(tail)
        for format_name, rounded in roundings().items():
            found.setdefault(format_name, {})[name] = relative_error(matrix, rounded)
    return found


def sample(tail: int | None) -> F32:
    """A matrix of independent weights, of about the size that a model's have."""
    generator = np.random.default_rng(0)
    shape = (ROWS, COLUMNS)
    numbers = generator.standard_normal(shape) if tail is None else generator.standard_t(tail, shape)
    return (0.02 * numbers).astype(np.float32)


def relative_error(matrix: F32, rounded: Rounding) -> float:
    return float(np.sqrt(np.mean((rounded(matrix) - matrix) ** 2) / np.mean(matrix**2)))


def roundings() -> Mapping[str, Rounding]:
    """Our formats, and those of who is installed."""

    def ours(how: Quantization) -> Rounding:
        return lambda matrix: np.asarray(dense(quantize(matrix, how)))

    return {name: ours(how) for name, how in OURS.items()} | _bitsandbytes() | _torchao()


def _bitsandbytes() -> dict[str, Rounding]:
    try:
        import torch
        from bitsandbytes import functional
    except ImportError:
        return {}

    def nf4(matrix: F32) -> F32:
        codes, state = functional.quantize_4bit(
            torch.from_numpy(matrix), blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        numbers: F32 = functional.dequantize_4bit(codes, state).numpy()
        return numbers

    def int8(matrix: F32) -> F32:
        codes, largest, _ = functional.int8_vectorwise_quant(torch.from_numpy(matrix).to(torch.float16))
        numbers: F32 = functional.int8_vectorwise_dequant(codes, largest).float().numpy()
        return numbers

    return {"bitsandbytes nf4, blocks of 64, double": nf4, "bitsandbytes int8, whole rows": int8}


def _torchao() -> dict[str, Rounding]:
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import quant_primitives as primitives
    except ImportError:
        return {}

    def int4(group: int, mapping: Any) -> Rounding:
        def rounded(matrix: F32) -> F32:
            weights, block = torch.from_numpy(matrix), (1, group)
            bounds = (0, 15) if mapping is primitives.MappingType.ASYMMETRIC else (-8, 7)
            scale, zero = primitives.choose_qparams_affine(weights, mapping, block, torch.int32, *bounds, eps=1e-9)
            codes = primitives.quantize_affine(weights, block, scale, zero, torch.int32, *bounds)
            numbers: F32 = primitives.dequantize_affine(codes, block, scale, zero, torch.int32, *bounds).numpy()
            return numbers

        return rounded

    kinds = primitives.MappingType
    return {
        **{f"torchao int4 with zero points, groups of {group}": int4(group, kinds.ASYMMETRIC) for group in (32, 128)},
        "torchao int4 symmetric, groups of 32": int4(32, kinds.SYMMETRIC),
    }
