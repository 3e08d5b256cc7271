"""Weighted mixes of adapters: what holds for every one, whoever wrote it down."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from openlora_jax.errors import InvalidRequest

MAX_MIX = 8
"""Members of a mix, at most; those of the mixes that it names count one by one."""

MAX_WEIGHT = 3.4028234663852886e38
"""Size of a weight in a mix, at most: float32's own."""


class Member(NamedTuple):
    """An adapter of a mix: its name, what that stood for, and the weight of its delta."""

    adapter: str
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class NamedMix:
    """A mix that is registered under a name.

    Attributes:
        weights: of the members, by their names; it follows a name that is given to another adapter.
        time: when it was registered, ISO 8601 in UTC.
    """

    weights: Mapping[str, float]
    time: str


def check_mix(members: Iterable[tuple[str, float]]) -> None:
    """Raises InvalidRequest for too many members, one named twice, or a weight that is too large or no number."""
    names = set[str]()
    for name, weight in members:
        if name in names:
            raise InvalidRequest("mix", f"adapter {name!r} is named twice; add its weights up")
        if not abs(weight) <= MAX_WEIGHT:
            problem = f"the weight {weight} of adapter {name!r} is not a number within {MAX_WEIGHT:g} of 0"
            raise InvalidRequest("mix", problem)
        names.add(name)
    if len(names) > MAX_MIX:
        raise InvalidRequest("mix", f"{len(names)} adapters are more than the {MAX_MIX} allowed")


def mix_text(weights: Mapping[str, float]) -> str:
    """In words, for people."""
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
