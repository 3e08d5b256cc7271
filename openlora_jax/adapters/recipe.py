"""How an adapter was made of others: enough to make it again, and part of its identity."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Method = Literal[
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
"""The `combination_type` of peft's `add_weighted_adapter`."""

Rule = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
"""What a method does to the tensors it is given, be they factors or whole deltas."""

MajoritySign = Literal["total", "frequency"]
"""TIES elects a sign by the sum of the values, or by their number."""

PRUNING: frozenset[Rule] = frozenset(get_args(Rule)) - {"linear"}
RANDOM: frozenset[Rule] = frozenset({"dare_linear", "dare_ties"})
ELECTING: frozenset[Rule] = frozenset({"ties", "dare_ties"})


class Member(BaseModel):
    """One of the merged adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    digest: Digest
    weight: Annotated[float, Field(allow_inf_nan=False)]


class Recipe(BaseModel):
    """What `openlora convert merge` did. A field that the method does not use is None.

    Attributes:
        density: the part of the values that is kept.
        seed: of what DARE drops.
        rank: of the decomposed delta, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Method
    members: Annotated[list[Member], Field(min_length=1)]
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    rank: Annotated[int, Field(ge=1)] | None = None
    majority_sign: MajoritySign | None = None

    @property
    def rule(self) -> Rule:
        return rule_of(self.method)

    @property
    def decomposes(self) -> bool:
        """Whether the method works on whole deltas and factors the result anew."""
        return self.method.endswith("svd")


def rule_of(method: Method) -> Rule:
    """`cat` and `svd` are plain sums of deltas."""
    return next((rule for rule in get_args(Rule) if rule == method.removesuffix("_svd")), "linear")
