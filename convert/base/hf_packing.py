"""How the matrices of a Hugging Face directory are packed, where it is quantised: GPTQ's way or AWQ's, of 4 bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.quantization.format import Group, Quantization
from openlora_jax.untrusted import read_json_object

REMEDY = "use the checkpoint that it was made from, with --quant"
GROUPS: dict[int, Group | None] = {32: 32, 64: 64, 128: 128, -1: None}


@dataclass(frozen=True, slots=True)
class Packing:
    """What the tensors of a packed matrix mean; see `packed_source`.

    Attributes:
        method: whose order of the codes it is.
        zero: what is added to a stored zero point.
        quantization: what a matrix is once it is unpacked.
    """

    method: Literal["gptq", "awq"]
    zero: int
    quantization: Quantization


class HfQuantization(BaseModel):
    """The keys of `quantization_config` that say how numbers are stored; others say how they were found."""

    model_config = ConfigDict(extra="ignore", strict=True)

    quant_method: str
    bits: int
    group_size: int
    sym: bool = True
    checkpoint_format: str = "gptq"
    zero_point: bool = True
    version: str = "gemm"


def read_packing(folder: Path) -> Packing | None:
    """What `config.json` says of it; None if the checkpoint is not quantised.

    Raises:
        BadCheckpoint: malformed.
        UnsupportedFeature: another method, other bits, or another size of groups.
    """
    path = folder / "config.json"
    fields = read_json_object(path).get("quantization_config")
    if fields is None:
        return None
    method = fields.get("quant_method") if isinstance(fields, dict) else None
    if method not in ("gptq", "awq"):
        raise _unsupported(path, "quant_method", method)
    config = _validated(path, fields)
    if config.bits != 4:
        raise _unsupported(path, "bits", config.bits)
    if config.group_size not in GROUPS:
        raise _unsupported(path, "group_size", config.group_size)
    return _gptq(path, config) if method == "gptq" else _awq(path, config)


def _validated(path: Path, fields: dict[str, Any]) -> HfQuantization:
    try:
        return HfQuantization.model_validate(fields)
    except ValidationError as error:
        problems = [f"quantization_config.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise BadCheckpoint(path, *problems) from error


def _gptq(path: Path, config: HfQuantization) -> Packing:
    """The first version of the format stores zero points less one."""
    if config.checkpoint_format not in ("gptq", "gptq_v2"):
        raise _unsupported(path, "checkpoint_format", config.checkpoint_format)
    return Packing("gptq", int(config.checkpoint_format == "gptq"), _quantization(config, symmetric=config.sym))


def _awq(path: Path, config: HfQuantization) -> Packing:
    if config.version.lower() != "gemm":
        raise _unsupported(path, "version", config.version)
    if not config.zero_point:
        raise _unsupported(path, "zero_point", config.zero_point)
    return Packing("awq", 0, _quantization(config, symmetric=False))


def _quantization(config: HfQuantization, *, symmetric: bool) -> Quantization:
    """Offsets are products of scales and zero points, and exact in 32 bits."""
    group = GROUPS[config.group_size]
    return Quantization(format="int4", group=group, offsets=None if symmetric else "float32")


def _unsupported(path: Path, key: str, value: object) -> UnsupportedFeature:
    return UnsupportedFeature(path, f"{key} {str(value)[:40]!r} of quantization_config", REMEDY)
