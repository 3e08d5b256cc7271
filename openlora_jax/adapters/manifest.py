"""What an adapter's artifact holds, without its numbers: enough to count pages and bytes before a tensor is read."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from openlora_jax.adapters.modules import MODULES, PAGE_RANK, ModuleShape
from openlora_jax.adapters.recipe import Digest, Recipe
from openlora_jax.config import Dtype

MAX_RANK = 256
"""Ranks of one module of one adapter, at most."""

ITEMSIZE: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}

Size = Annotated[int, Field(ge=1, le=1 << 24)]


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
        origin: None where it was not recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: Size
    d_in: Size
    d_out: Size
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
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


class Manifest(BaseModel):
    """The description of one artifact; equal manifests and equal tensors make equal digests.

    Attributes:
        format: of the artifact directory.
        base_digest: of the base checkpoint that the adapter's shapes were checked against.
        dtype: of every tensor.
        modules: the targeted modules, by name.
        recipe: of what the adapter was merged; None if it was trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    base_digest: Digest
    dtype: Dtype
    modules: Annotated[dict[str, LowRank], Field(min_length=1)]
    recipe: Recipe | None = None

    @field_validator("modules")
    @classmethod
    def _known(cls, modules: dict[str, LowRank]) -> dict[str, LowRank]:
        if unknown := modules.keys() - set(MODULES):
            raise ValueError(f"unknown modules {sorted(unknown)}")
        return modules

    @property
    def pages(self) -> dict[str, int]:
        """Rank pages by module, in the order of `MODULES`."""
        return {module: self.modules[module].pages for module in MODULES if module in self.modules}

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Tensor name -> shape: `MODULE.A` is `[layers, pages, 16, d_in]`, `MODULE.B` `[layers, pages, 16, d_out]`."""
        shapes = {}
        for module, pages in self.pages.items():
            size = self.modules[module]
            shapes[f"{module}.A"] = (size.layers, pages, PAGE_RANK, size.d_in)
            shapes[f"{module}.B"] = (size.layers, pages, PAGE_RANK, size.d_out)
        return shapes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        elements = sum(pages * self.modules[module].shape.page_elements for module, pages in self.pages.items())
        return elements * ITEMSIZE[self.dtype]

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
