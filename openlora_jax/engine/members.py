"""Who answers a request: the names in its mix, resolved once, at admission."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from openlora_jax.adapters.mixes import Member, check_mix
from openlora_jax.engine.request import GenerateRequest, MixItem, ScoreRequest

Request = GenerateRequest | ScoreRequest


@runtime_checkable
class Store(Protocol):
    """The adapter store, as the engine sees it."""

    def members(self, name: str) -> Sequence[Member]:
        """The adapters that a name stands for now: one of weight 1, or those of a mix; UnknownAdapter if none."""


def resolve_names(request: Request, store: Store) -> tuple[Request, list[tuple[str, str]]]:
    """The request with the members of each mix that it names in that one's place, and the content of every name.

    Args:
        request: whose mix is checked.
        store: that knows the names.

    Returns:
        The request, and the name and digest of each of its adapters, in its order.

    Raises:
        UnknownAdapter: a name that stands for nothing.
        InvalidRequest: members that are too many, or whose weights are too large, only together.
    """
    members = _flat(request.mix, store)
    mix = tuple(MixItem(member.adapter, member.weight) for member in members)
    return replace(request, mix=mix), [(member.adapter, member.digest) for member in members]


def _flat(mix: Sequence[MixItem], store: Store) -> list[Member]:
    """The adapters of a mix; what comes in by several names has the sum of its weights."""
    found: dict[str, Member] = {}
    for item in mix:
        for member in store.members(item.adapter):
            before = found[member.adapter].weight if member.adapter in found else 0.0
            found[member.adapter] = member._replace(weight=before + item.weight * member.weight)
    check_mix((member.adapter, member.weight) for member in found.values())
    return list(found.values())
