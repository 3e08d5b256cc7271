"""The adapters that take part in a merge, read from a store, and what they must have in common."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from openlora_jax.adapters.artifact import Tensor
from openlora_jax.adapters.factors import F32, Factors, layer_factors
from openlora_jax.adapters.few_bits import in_numbers
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.errors import InvalidRequest


class Weighted(NamedTuple):
    """An adapter by name, and the weight of its delta."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter in host memory, as content: `digest` is what `name` stood for when it was read."""

    name: str
    weight: float
    digest: str
    manifest: Manifest
    tensors: Mapping[str, Tensor]

    def factors(self, module: str, layer: int) -> Factors | None:
        """What it has for one module of one layer, if anything."""
        return layer_factors(self.manifest, self.tensors, module, layer)

    def saved(self, module: str) -> F32 | None:
        """The matrix that it has in the place of the base's, if it has one: a row for each token."""
        found = self.tensors.get(f"{module}.saved")
        return None if found is None else found[0, 0].astype(np.float32)


def read_sources(
    store: AdapterStore, members: Sequence[Weighted], base_digest: str | None = None, into_base: bool = False
) -> list[Source]:
    """Reads every member, after all that can be said without its numbers has been checked.

    Args:
        store: that knows the members.
        members: by name.
        base_digest: of the base that all must be for; by default that of the first.
        into_base: they are for a base, which takes a saved module over from an adapter that goes into it alone.

    Raises:
        InvalidRequest: no member, one of them twice, a weight that is not finite, adapters of different bases, or one
            that is more than a delta of weights.
        UnknownAdapter: a name that the store does not know.
        BadCheckpoint: a damaged artifact.
    """
    digests = {member.name: store.resolve(member.name) for member in members}
    _check_members(members, digests)
    manifests = {name: store.manifest(digest) for name, digest in digests.items()}
    _check_bases(manifests, base_digest)
    _check_plain(manifests)
    _check_saved(manifests, members, into_base)
    return [Source(*member, digests[member.name], *in_numbers(*store.read(digests[member.name]))) for member in members]


def _check_members(members: Sequence[Weighted], digests: Mapping[str, str]) -> None:
    if not members:
        raise InvalidRequest("members", "none is named; give NAME=WEIGHT for each adapter")
    first: dict[str, str] = {}
    for name, weight in members:
        if not math.isfinite(weight):
            raise InvalidRequest("members", f"the weight of {name!r} is {weight}; it must be a finite number")
        if digests[name] in first:
            same = first[digests[name]]
            how = "is named twice" if same == name else f"is the same adapter as {same!r}"
            raise InvalidRequest("members", f"{name!r} {how}; name it once, with its weights added up")
        first[digests[name]] = name


def _check_bases(manifests: Mapping[str, Manifest], base_digest: str | None) -> None:
    first = next(iter(manifests))
    wanted = base_digest or manifests[first].base_digest
    for name, manifest in manifests.items():
        if manifest.base_digest != wanted:
            whose = "this one is" if base_digest else f"{first!r} for"
            raise InvalidRequest(
                "members",
                f"{name!r} was converted for base {manifest.base_digest[:12]}, and {whose} {wanted[:12]}; "
                "merge adapters of one base",
            )


def _check_plain(manifests: Mapping[str, Manifest]) -> None:
    for name, manifest in manifests.items():
        vectors = {size.vector for size in manifest.modules.values()}
        what = "DoRA, whose gain is not linear" if "gain" in vectors else "lora_bias" if "bias" in vectors else None
        if manifest.invocation_tokens:
            what = "aLoRA, which acts on a part of a prompt"
        if what:
            problem = f"{name!r} is {what}: it is no delta of weights, and cannot be merged"
            raise InvalidRequest("members", f"{problem}; requests may name it as it is")


def _check_saved(manifests: Mapping[str, Manifest], members: Sequence[Weighted], into_base: bool) -> None:
    for name, manifest in manifests.items():
        if manifest.saved and not (into_base and [weight for _, weight in members] == [1.0]):
            problem = f"{name!r} has modules of its own in the place of the base's (modules_to_save)"
            remedy = "it goes into a base (--into-base) alone and with the weight 1"
            raise InvalidRequest("members", f"{problem}, which are no deltas of weights; {remedy}")
