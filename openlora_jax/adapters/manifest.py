"""What an adapter's artifact holds, without its numbers: enough to count pages and bytes before a tensor is read."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from openlora_jax.adapters.modules import (
    INT4,
    INT4_COLUMNS,
    MODULES,
    PAGE_RANK,
    SAVEABLE,
    SAVED,
    VECTORS,
    ModuleShape,
    Saveable,
    module_of,
    page_shape,
)
from openlora_jax.adapters.recipe import Digest, Recipe
from openlora_jax.adapters.traits import Traits
from openlora_jax.config import Dtype
from openlora_jax.quantization.format import Quantization, parts, problem

MAX_RANK = 256
"""Ranks of one module of one adapter, at most."""

StoredDtype = Literal["float32", "bfloat16", "float16", "int8", "uint8"]
"""Of an array in an artifact; the last three are of few bits."""

ITEMSIZE: Mapping[StoredDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}

MAX_INVOCATION = 1024
"""Tokens that invoke an adapter, at most."""

VectorKind = Literal["gain", "bias"]
"""What a vector page is for."""

Side = Literal["A", "B"]
Bits = Literal["int8", "int4"]
"""What A and B may be stored in, beside numbers."""

Size = Annotated[int, Field(ge=1, le=1 << 24)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
RelativeError = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ArrayType(NamedTuple):
    """An array of an artifact: `[layers, pages, rows, width]`."""

    shape: tuple[int, int, int, int]
    dtype: StoredDtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


class Origin(BaseModel):
    """The factors of a module as they were before they were padded and scaled, which methods of merging depend on.

    Attributes:
        ranks: of each layer; 0 where it is not targeted.
        scales: what was folded into each layer's B; 0 where it is not targeted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ranks: list[Annotated[int, Field(ge=0, le=MAX_RANK)]]
    scales: list[Annotated[float, Field(allow_inf_nan=False)]]


class FewBits(BaseModel):
    """How A or B of a module is stored, where it is stored in few bits; see `Quantization`.

    Attributes:
        errors: of each layer, the Frobenius norm of what rounding changed over that of the matrix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Bits
    group: Literal[32]
    errors: list[RelativeError]

    @property
    def how(self) -> Quantization:
        return Quantization(format=self.format, group=self.group)


class LowRank(BaseModel):
    """One targeted module of an adapter.

    Attributes:
        rank: the largest rank of any layer; a layer of less is zero-padded, a layer that is not targeted is all zeros.
        vector: what its vector page is for: DoRA's `gain`, which B has in it too, with the bias that makes up for the
            base's own; or a `bias` alone, of `lora_bias`. None if it has no such page.
        origin: None where it was not recorded.
        few_bits: of A and B, those that are stored so; None if neither is.
        delta_errors: of each layer, what rounding changed of B'A over that, where something is in few bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: Size
    d_in: Size
    d_out: Size
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    vector: VectorKind | None = None
    origin: Origin | None = None
    few_bits: Annotated[dict[Side, FewBits], Field(min_length=1)] | None = None
    delta_errors: Annotated[list[RelativeError], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _of_every_layer(self) -> "LowRank":
        origin = self.origin
        if origin and not (len(origin.ranks) == len(origin.scales) == self.layers and max(origin.ranks) == self.rank):
            raise ValueError("origin must have a scale and a rank of every layer, and the largest rank is the module's")
        return self

    @model_validator(mode="after")
    def _can_be_packed(self) -> "LowRank":
        stored = self.few_bits or {}
        for side, bits in stored.items():
            if reason := problem(self.width(side), bits.how):
                raise ValueError(f"{side}: {reason}")
        errors = [bits.errors for bits in stored.values()] + ([self.delta_errors] if self.delta_errors else [])
        if bool(stored) != bool(self.delta_errors) or any(len(each) != self.layers for each in errors):
            raise ValueError("few_bits and delta_errors must both have an error of every layer")
        return self

    @property
    def is_int4(self) -> bool:
        """Whether it can be computed on in 4 bits."""
        formats = [bits.format for bits in (self.few_bits or {}).values()]
        return formats == ["int4", "int4"] and self.d_in % INT4_COLUMNS == self.d_out % INT4_COLUMNS == 0

    def width(self, side: Side) -> int:
        """Columns of A or B."""
        return self.d_in if side == "A" else self.d_out

    @property
    def bits_report(self) -> dict[str, Any]:
        """What is in few bits, and the largest errors of any layer; empty if nothing is."""
        if not self.few_bits or not self.delta_errors:
            return {}
        formats = {side: f"{bits.format}, error {max(bits.errors):g}" for side, bits in self.few_bits.items()}
        return {"few_bits": formats, "delta_error": max(self.delta_errors)}

    @property
    def pages(self) -> int:
        """Rank pages that the module takes in the pool."""
        return -(-self.rank // PAGE_RANK)

    @property
    def shape(self) -> ModuleShape:
        return ModuleShape(self.layers, self.d_in, self.d_out)


class SavedModule(BaseModel):
    """A matrix of an adapter's own, in the place of the base's: a row for each token of the vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rows: Size
    width: Size


class Manifest(BaseModel):
    """The description of one artifact; equal manifests and equal tensors make equal digests.

    Attributes:
        format: of the artifact directory.
        base_digest: of the base checkpoint that the adapter's shapes were checked against.
        dtype: of every tensor that is not in few bits.
        modules: the modules with LoRA, by name.
        saved: those that it has whole, by name (`modules_to_save`); None if there is none.
        invocation_tokens: the adapter acts from where they occur last in a prompt; None if it acts everywhere.
        recipe: of what the adapter was merged; None if it was trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    base_digest: Digest
    dtype: Dtype
    modules: dict[str, LowRank]
    saved: Annotated[dict[Saveable, SavedModule], Field(min_length=1)] | None = None
    invocation_tokens: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_INVOCATION)] | None = None
    recipe: Recipe | None = None

    @field_validator("modules")
    @classmethod
    def _known(cls, modules: dict[str, LowRank]) -> dict[str, LowRank]:
        if unknown := modules.keys() - set(MODULES):
            raise ValueError(f"unknown modules {sorted(unknown)}")
        return modules

    @model_validator(mode="after")
    def _of_something(self) -> "Manifest":
        if not self.modules and not self.saved:
            raise ValueError("modules and saved are both empty")
        if both := self.modules.keys() & (self.saved or {}).keys():
            raise ValueError(f"{min(both)} has LoRA and is saved too")
        if self.saved and self.invocation_tokens:
            raise ValueError(f"{min(self.saved)} is saved, which acts before the adapter is invoked")
        return self

    @property
    def pages(self) -> dict[str, int]:
        """Pages by pool, in the order of `POOLS`: rank pages of every module, and one of what else it has."""
        modules = ((pool, self.modules.get(module_of(pool))) for pool in (*MODULES, *VECTORS, *INT4))
        counts = {pool: _pages(pool, size) for pool, size in modules if size}
        counts |= {pool: int(module in (self.saved or {})) for module, pool in zip(SAVEABLE, SAVED, strict=True)}
        return {pool: count for pool, count in counts.items() if count}

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Tensor name -> `[layers, pages, rows, width]` of its numbers, however they are stored; see `PageShape`."""
        shapes: dict[str, tuple[int, int, int, int]] = {}
        for pool, pages in self.pages.items():
            if pool not in SAVED:
                page = page_shape(pool, self.modules[module_of(pool)].shape)
                shapes |= {name: (page.layers, pages, *each) for name, each in page.parts.items()}
        return shapes | {f"{module}.saved": (1, 1, of.rows, of.width) for module, of in (self.saved or {}).items()}

    @property
    def arrays(self) -> dict[str, ArrayType]:
        """The arrays that the tensors are stored as: one in few bits is two, `NAME.codes` and `NAME.scale`."""
        few_bits, arrays = self.few_bits, dict[str, ArrayType]()
        for name, shape in self.tensor_shapes.items():
            stored = parts(shape[3], few_bits[name].how) if name in few_bits else {}
            arrays |= {f"{name}.{part}": ArrayType((*shape[:3], count), of) for part, (count, of) in stored.items()}
            if not stored:
                arrays[name] = ArrayType(shape, self.dtype)
        return arrays

    @property
    def few_bits(self) -> dict[str, FewBits]:
        """The tensors in few bits, by name."""
        return {
            f"{module}.{side}": bits
            for module, size in self.modules.items()
            for side, bits in (size.few_bits or {}).items()
        }

    @property
    def stored(self) -> str:
        """What its tensors are stored in: formats of few bits, then the dtype of those that are not."""
        few_bits = self.few_bits
        formats = {bits.format for bits in few_bits.values()}
        plain = [self.dtype] if self.tensor_shapes.keys() - few_bits.keys() else []
        return ", ".join([*sorted(formats), *plain])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def saved_bytes(self) -> dict[str, int]:
        """Bytes of each module that it has whole."""
        return {module: of.rows * of.width * ITEMSIZE[self.dtype] for module, of in (self.saved or {}).items()}

    @property
    def traits(self) -> Traits:
        """What an engine must know of it beside its pages."""
        gains = any(size.vector == "gain" for size in self.modules.values())
        return Traits(tuple(self.invocation_tokens or ()), gains, bool(self.saved))

    def to_fields(self) -> dict[str, Any]:
        """As JSON has it; what is None is left out."""
        return self.model_dump(exclude_none=True)

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> "Manifest":
        """The manifest of parsed JSON.

        Raises:
            ValueError: a field is missing, unknown or out of bounds; the message names the first.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _pages(pool: str, size: LowRank) -> int:
    if pool in VECTORS:
        return int(size.vector is not None)
    in_int4 = size.is_int4 and f"{module_of(pool)}.int4" in INT4
    return size.pages if (pool in INT4) == in_int4 else 0
