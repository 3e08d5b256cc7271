"""Adapters in few bits: factors rounded, how much that changed, and back to numbers.

Every row of A and of B, a rank, is cut into groups of columns by itself. What an adapter has beside factors stays as it
is, and so does a factor whose columns cannot be packed. There is no nf4: of the factors of trained adapters it loses a
quarter more than int4 in groups of 32, for 0.02 fewer bytes of 16-bit ones.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float32

from openlora_jax.adapters.artifact import DTYPES, Tensor, Tensors
from openlora_jax.adapters.factors import F32
from openlora_jax.adapters.manifest import Bits, FewBits, LowRank, Manifest, Side
from openlora_jax.arrays import AnyArray
from openlora_jax.config import Dtype
from openlora_jax.quantization.format import Quantization, problem
from openlora_jax.quantization.matrix import Int4Matrix, Int8Matrix, QuantizedMatrix, dense
from openlora_jax.quantization.quantize import quantize

AdapterFormat = Literal["int8", "int4", "auto"]
"""`auto` is int4 where that changes little, see `Rounding`."""

MOST_ERROR = 0.1
"""What `auto` lets rounding change of a matrix, in its Frobenius norm. Normally distributed ones lose 0.075."""

SIDES: tuple[Side, ...] = ("A", "B")
Pages = Tensor | QuantizedMatrix
"""Some rank pages of a factor, `[..., 16, width]`; in few bits each array of a matrix has these dimensions."""
_PARTS = re.compile(r"(.*)\.(codes|scale)")


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the factors of an adapter are to be stored.

    Attributes:
        format: of every factor.
        most: with `auto`, a factor stays in numbers if rounding would change more of it than this, in any layer.
        dtype: of what stays in numbers.
    """

    format: AdapterFormat
    most: float = MOST_ERROR
    dtype: Dtype = "bfloat16"

    @property
    def bits(self) -> Bits:
        """What is tried."""
        return "int4" if self.format == "auto" else self.format


def in_few_bits(manifest: Manifest, tensors: Tensors, rounding: Rounding) -> tuple[Manifest, dict[str, Tensor]]:
    """An adapter in few bits, of one in numbers.

    Raises:
        ValueError: a factor's numbers are too large for the format's scales; names it.
    """
    modules: dict[str, LowRank] = {}
    stored: dict[str, Tensor] = {}
    for module, size in manifest.modules.items():
        exact = {side: tensors[f"{module}.{side}"].astype(np.float32) for side in SIDES}
        found = {side: _rounded(f"{module}.{side}", exact[side], rounding) for side in SIDES}
        rounded: dict[Side, F32] = {}
        for side, (pages, _) in found.items():
            rounded[side] = pages.astype(np.float32) if isinstance(pages, np.ndarray) else _on_host(pages)
            stored |= _arrays(f"{module}.{side}", pages)
        bits = {side: each for side, (_, each) in found.items() if each}
        errors = _delta_errors(exact, rounded) if bits else None
        modules[module] = size.model_copy(update={"few_bits": bits or None, "delta_errors": errors})
    others = {name: tensor for name, tensor in tensors.items() if not name.endswith((".A", ".B"))}
    stored |= {name: tensor.astype(DTYPES[rounding.dtype]) for name, tensor in others.items()}
    return manifest.model_copy(update={"dtype": rounding.dtype, "modules": modules}), stored


def kept_in_numbers(manifest: Manifest, rounding: Rounding) -> dict[str, str]:
    """Why each factor that was left in numbers was, by name."""
    how = Quantization(format=rounding.bits, group=32)
    changed = f"rounding would change more than {rounding.most:g} of it"
    return {
        f"{module}.{side}": problem(size.width(side), how) or changed
        for module, size in manifest.modules.items()
        for side in SIDES
        if side not in (size.few_bits or {})
    }


def in_numbers(manifest: Manifest, tensors: Tensors) -> tuple[Manifest, dict[str, Tensor]]:
    """The same adapter with every factor in numbers: of float32, if it had some in few bits."""
    if not manifest.few_bits:
        return manifest, dict(tensors)
    modules = {
        module: size.model_copy(update={"few_bits": None, "delta_errors": None})
        for module, size in manifest.modules.items()
    }
    wide = {
        name: pages.astype(np.float32) if isinstance(pages, np.ndarray) else _on_host(pages)
        for name, pages in gathered(tensors).items()
    }
    return manifest.model_copy(update={"dtype": "float32", "modules": modules}), wide


def gathered(tensors: Tensors) -> dict[str, Pages]:
    """The tensors that an artifact's arrays are, each whole, by name."""
    found: dict[str, Pages] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _PARTS.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = tensor
        else:
            found[name] = tensor
    return found | {name: _matrix(each) for name, each in parts.items()}


def numbers(pages: QuantizedMatrix) -> Float32[AnyArray, "*X W"]:
    """What pages stand for, on the device."""
    lead = pages.codes.shape[:-1]
    flat = jax.tree.map(lambda part: part.reshape(int(np.prod(lead)), -1), pages)
    return dense(flat).reshape(*lead, -1)


def shape_of(pages: Pages) -> tuple[int, ...]:
    """Of their numbers."""
    if isinstance(pages, np.ndarray):
        return tuple(pages.shape)
    shape: tuple[int, ...] = pages.codes.shape
    return shape if isinstance(pages, Int8Matrix) else (*shape[:-1], 2 * shape[-1])


def _rounded(name: str, exact: F32, rounding: Rounding) -> tuple[Pages, FewBits | None]:
    """A factor as it will be stored."""
    bits = FewBits(format=rounding.bits, group=32, errors=[0.0] * len(exact))
    kept = exact.astype(DTYPES[rounding.dtype])
    if problem(exact.shape[-1], bits.how):
        return kept, None
    rows = exact.reshape(-1, exact.shape[-1])
    pages: QuantizedMatrix = jax.tree.map(lambda part: part.reshape(*exact.shape[:3], -1), quantize(rows, bits.how))
    if not np.isfinite(pages.scale).all():
        if rounding.format == "auto":
            return kept, None
        raise ValueError(f"{name} has numbers too large for the scales of {bits.format}")
    changed = _on_host(pages) - exact
    errors = [_relative(_norm(part), _norm(whole)) for part, whole in zip(changed, exact, strict=True)]
    if rounding.format == "auto" and max(errors) > rounding.most:
        return kept, None
    return pages, bits.model_copy(update={"errors": errors})


def _on_host(pages: QuantizedMatrix) -> F32:
    return np.asarray(numbers(pages))


def _delta_errors(exact: Mapping[Side, F32], rounded: Mapping[Side, F32]) -> list[float]:
    """Of each layer, |B'A - B0'A0| / |B'A|: the difference is a product of twice the rank."""
    errors = []
    for layer in range(len(exact["A"])):
        a, b, a0, b0 = (
            factors[side][layer].reshape(-1, factors[side].shape[-1]).astype(np.float64)
            for factors in (exact, rounded)
            for side in SIDES
        )
        changed = _product_norm(np.concatenate([a, a0]), np.concatenate([b, -b0]))
        errors.append(_relative(changed, _product_norm(a, b)))
    return errors


def _product_norm(a: Any, b: Any) -> float:
    """The Frobenius norm of B'A, from two products of rank by rank."""
    return sqrt(max(float(np.sum((a @ a.T) * (b @ b.T))), 0.0))


def _norm(values: F32) -> float:
    return float(np.sqrt(np.sum(values.astype(np.float64) ** 2)))


def _relative(changed: float, whole: float) -> float:
    """To three digits: what follows differs between machines, and the manifest's digest should not."""
    return float(f"{changed / whole:.3g}") if whole else 0.0


def _arrays(name: str, pages: Pages) -> dict[str, Tensor]:
    """Of one tensor, by their names in an artifact."""
    if isinstance(pages, np.ndarray):
        return {name: pages}
    return {f"{name}.{part}": array for part, array in pages._asdict().items() if array is not None}


def _matrix(parts: Mapping[str, Tensor]) -> QuantizedMatrix:
    return Int8Matrix(**parts) if parts["codes"].dtype == np.int8 else Int4Matrix(**parts, offset=None)
