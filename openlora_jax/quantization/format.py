"""The formats of a quantised base model."""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

from openlora_jax.errors import InvalidRequest

Format = Literal["int8", "int4", "nf4"]
Group = Literal[32, 64, 128]
Groups = Literal["32", "64", "128", "row"]
PartDtype = Literal["int8", "uint8", "float16", "float32"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How a matrix is stored in few bits; the classes of `pallas_kernels.quantized` say what its numbers are.

    Attributes:
        format: bits and meaning of a code.
        group: columns that share a scale; None for all of a row.
        offsets: the type of int4's offsets. None is symmetric: there are none.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    format: Format
    group: Group | None
    offsets: Literal["float16", "float32"] | None = None

    def __post_init__(self) -> None:
        if self.offsets and self.format != "int4":
            raise ValueError(f"{self.format} has no offsets; int4 alone has them")

    def __str__(self) -> str:
        groups = f"groups of {self.group}" if self.group else "whole rows"
        return f"{self.format} in {groups}{', with offsets' if self.offsets else ''}"


WIDE = Quantization(format="int8", group=32)
"""Of the embedding and the head, whatever the other matrices have: errors of the head go straight into the logits."""

PACKED = 32
"""Columns that codes of 4 bits are packed together in, as in `pallas_kernels.quantized`."""

GROUPS: dict[Format, Group] = {"int8": 32, "int4": 32, "nf4": 64}
"""Where none is asked for. 32 is that of GGUF's Q8_0, Q4_0 and Q4_1, whose numbers then stay what they are."""


def problem(columns: int, how: Quantization) -> str | None:
    """Why rows of so many columns cannot be stored so; None if they can."""
    if how.format != "int8" and columns % PACKED:
        return f"{columns} columns are not a multiple of the {PACKED} that {how.format} packs together"
    return None


def parts(columns: int, how: Quantization) -> dict[str, tuple[int, PartDtype]]:
    """The arrays of a matrix by name: how many numbers each has for a row of so many columns, and their type."""
    groups = -(-columns // how.group) if how.group else 1
    if how.format == "int8":
        return {"codes": (columns, "int8"), "scale": (groups, "float16")}
    if how.format == "nf4":
        return {"codes": (columns // 2, "uint8"), "scale": (groups, "uint8"), "step": (1, "float32")}
    halves: dict[str, tuple[int, PartDtype]] = {"codes": (columns // 2, "uint8"), "scale": (groups, "float16")}
    return halves | ({"offset": (groups, how.offsets)} if how.offsets else {})


def choose(
    wanted: Format, groups: Groups | None = None, symmetric: bool = False, own: Quantization | None = None
) -> Quantization:
    """The format that was asked for; where a checkpoint is quantised in one that agrees with all of it, its own.

    Args:
        wanted: its name.
        groups: columns that share a scale, or `row`; None for the usual ones.
        symmetric: int4 without offsets.
        own: what the checkpoint is quantised in.

    Raises:
        InvalidRequest: the format has no offsets to leave out.
    """
    if symmetric and wanted != "int4":
        raise InvalidRequest("--symmetric", f"{wanted} is symmetric in any case; leave it out, or use --quant int4")
    group: dict[Groups, Group | None] = {"32": 32, "64": 64, "128": 128, "row": None}
    if own is not None and own.format == wanted:
        agrees = groups is None or group[groups] == own.group
        if agrees and not (symmetric and own.offsets):
            return own
    offsets: Literal["float16"] | None = "float16" if wanted == "int4" and not symmetric else None
    return Quantization(format=wanted, group=group[groups] if groups else GROUPS[wanted], offsets=offsets)
