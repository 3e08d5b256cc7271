"""What an adapter's artifact holds, without its numbers: enough to count pages and bytes before a tensor is read."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from openlora_jax.adapters.modules import (
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

MAX_RANK = 256
"""Ranks of one module of one adapter, at most."""

ITEMSIZE: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}

MAX_INVOCATION = 1024
"""Tokens that invoke an adapter, at most."""

VectorKind = Literal["gain", "bias"]
"""What a vector page is for."""

Size = Annotated[int, Field(ge=1, le=1 << 24)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Origin(BaseModel):
    """The factors of a module as they were before they were padded and scaled, which methods of merging depend on.

    Attributes:
        ranks: of each layer; 0 where it is not targeted.
        scales: what was folded into each layer's B; 0 where it is not targeted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ranks: list[Annotated[int, Field(ge=0, le=MAX_RANK)]]
    scales: list[Annotated[float, Field(allow_inf_nan=False)]]


class LowRank(BaseModel):
    """One targeted module of an adapter.

    Attributes:
        rank: the largest rank of any layer; a layer of less is zero-padded, a layer that is not targeted is all zeros.
        vector: what its vector page is for: DoRA's `gain`, which B has in it too, with the bias that makes up for the
            base's own; or a `bias` alone, of `lora_bias`. None if it has no such page.
        origin: None where it was not recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: Size
    d_in: Size
    d_out: Size
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    vector: VectorKind | None = None
    origin: Origin | None = None

    @model_validator(mode="after")
    def _of_every_layer(self) -> "LowRank":
        origin = self.origin
        if origin and not (len(origin.ranks) == len(origin.scales) == self.layers and max(origin.ranks) == self.rank):
            raise ValueError("origin must have a scale and a rank of every layer, and the largest rank is the module's")
        return self

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
        dtype: of every tensor.
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
    saved: dict[Saveable, SavedModule] | None = None
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
        return self

    @property
    def pages(self) -> dict[str, int]:
        """Pages by pool, in the order of `POOLS`: rank pages of every module, and one of what else it has."""
        modules = ((pool, self.modules.get(module_of(pool))) for pool in (*MODULES, *VECTORS))
        counts = {pool: _pages(pool, size) for pool, size in modules if size}
        counts |= {pool: int(module in (self.saved or {})) for module, pool in zip(SAVEABLE, SAVED, strict=True)}
        return {pool: count for pool, count in counts.items() if count}

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Tensor name -> `[layers, pages, rows, width]`; see `PageShape`."""
        shapes: dict[str, tuple[int, int, int, int]] = {}
        for pool, pages in self.pages.items():
            if pool not in SAVED:
                page = page_shape(pool, self.modules[module_of(pool)].shape)
                shapes |= {name: (page.layers, pages, *each) for name, each in page.parts.items()}
        return shapes | {f"{module}.saved": (1, 1, of.rows, of.width) for module, of in (self.saved or {}).items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(map(math.prod, self.tensor_shapes.values())) * ITEMSIZE[self.dtype]

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
    return int(size.vector is not None) if pool in VECTORS else size.pages
