"""From what was asked for to a recipe, or the reason why it cannot be done; the rules are peft's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convert.merge.sources import Source
from openlora_jax.adapters.manifest import MAX_RANK
from openlora_jax.adapters.recipe import ELECTING, PRUNING, RANDOM, MajoritySign, Member, Method, Recipe, rule_of
from openlora_jax.errors import InvalidRequest

EXACT = "use cat for the exact sum, or svd or another _svd method, which decompose whole deltas"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What was asked for. None stands for the default where the method needs a value, and for nothing elsewhere."""

    method: Method
    density: float | None = None
    seed: int | None = None
    rank: int | None = None
    majority_sign: MajoritySign | None = None


def recipe_of(wish: Wish, sources: Sequence[Source]) -> Recipe:
    """The recipe with every value that it depends on. A single adapter is merged by `linear`, as in peft.

    Raises:
        InvalidRequest: a value that is missing, out of bounds or without a part in the method; adapters whose ranks or
            scales the method cannot take; a result of more ranks than an adapter may have.
    """
    _check_wish(wish)
    rule, decomposes = rule_of(wish.method), wish.method.endswith("svd")
    members = [Member(digest=source.digest, weight=source.weight) for source in sources]
    if len(sources) == 1:
        _check_factors("linear", sources)
        return Recipe(method="linear", members=members)
    if wish.method == "cat":
        _check_sum(sources)
    elif not decomposes:
        _check_factors(wish.method, sources)
    return Recipe(
        method=wish.method,
        members=members,
        density=wish.density,
        seed=(wish.seed or 0) if rule in RANDOM else None,
        rank=(wish.rank or max(map(_rank, sources))) if decomposes else None,
        majority_sign=(wish.majority_sign or "total") if rule in ELECTING else None,
    )


def _check_wish(wish: Wish) -> None:
    rule = rule_of(wish.method)
    _refuse_unused(wish, "density", rule in PRUNING)
    _refuse_unused(wish, "seed", rule in RANDOM)
    _refuse_unused(wish, "rank", wish.method.endswith("svd"))
    _refuse_unused(wish, "majority_sign", rule in ELECTING)
    if rule in PRUNING and wish.density is None:
        raise InvalidRequest("--density", f"{wish.method} needs the part of the values to keep, such as 0.5")
    if wish.density is not None and not 0 < wish.density <= 1:
        raise InvalidRequest("--density", f"{wish.density} must be above 0 and at most 1")
    if wish.seed is not None and not 0 <= wish.seed < 1 << 64:
        raise InvalidRequest("--seed", f"{wish.seed} must be from 0 to 2^64 - 1")
    if wish.rank is not None and not 1 <= wish.rank <= MAX_RANK:
        raise InvalidRequest("--rank", f"{wish.rank} must be from 1 to {MAX_RANK}")


def _refuse_unused(wish: Wish, field: str, used: bool) -> None:
    if getattr(wish, field) is not None and not used:
        raise InvalidRequest(f"--{field.replace('_', '-')}", f"has no part in {wish.method}; leave it out")


def _rank(source: Source) -> int:
    return max(size.rank for size in source.manifest.modules.values())


def _check_sum(sources: Sequence[Source]) -> None:
    total = sum(map(_rank, sources))
    if total > MAX_RANK:
        raise InvalidRequest(
            "--method", f"cat would make rank {total}, more than the limit of {MAX_RANK}; use svd with --rank"
        )


def _check_factors(method: Method, sources: Sequence[Source]) -> None:
    """Methods that combine A with A and B with B need them as they were trained, and of one shape."""
    _check_ranks(method, "", ((source.name, _rank(source)) for source in sources))
    layers: dict[str, list[tuple[str, int]]] = {}
    for source in sources:
        for module, size in source.manifest.modules.items():
            if size.origin is None:
                problem = (
                    f"{source.name!r} was converted by a version that kept no scales; convert it again, or {EXACT}"
                )
                raise InvalidRequest("members", problem)
            for layer, (rank, scale) in enumerate(zip(size.origin.ranks, size.origin.scales, strict=True)):
                where = f" in layer {layer} of {module}"
                if rank and not scale:
                    raise InvalidRequest("members", f"{source.name!r} has the scale 0{where}; {EXACT}")
                if rank:
                    layers.setdefault(where, []).append((source.name, rank))
    for where, ranks in layers.items():
        _check_ranks(method, where, ranks)


def _check_ranks(method: Method, where: str, ranks: Iterable[tuple[str, int]]) -> None:
    (first, wanted), *others = ranks
    for name, rank in others:
        if rank != wanted:
            problem = f"needs equal ranks, and {first!r} has {wanted} where {name!r} has {rank}{where}"
            raise InvalidRequest("--method", f"{method} {problem}; {EXACT}")
