"""Which adapters hold device pages and for whom: a state machine without arrays, threads or a clock.

    FREE --acquire--> LOADING --place--> RESIDENT --unload--> DRAINING --last release--> FREE
      |                  |                ^ |  ^ evict            |
      |                  '--fail--> FREE <--'  '------acquire-----'
      '--------------prefetch-------------'

A lease *waits* for an adapter until `place` makes it a *reference*. Pages with a reference stay where they are. A lease
that waits keeps no pages, else requests that wait for room could hold the very room that they wait for.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from openlora_jax.adapters.counters import Counters, PageState, Reason
from openlora_jax.adapters.pages import AdapterPages, PageAllocator, shortage
from openlora_jax.adapters.quarantine import Failure
from openlora_jax.adapters.traits import PLAIN, Traits


@dataclass(slots=True, eq=False)
class Residence:
    """One adapter from its first acquire until it is FREE; a later acquire of the same digest makes a new one.

    Attributes:
        counts: pool -> pages it takes; known when its load is done.
        pages: where it is on the device; None while LOADING.
        traits: how it acts; known when it is on the device.
        waiters: leases not placed yet.
        refs: leases placed and not released.
        unloading: leaves with its last lease, unless it is acquired again before.
        placed_at: when it got its pages.
        failure: why it left; set once, by `fail`.
    """

    digest: str
    counts: Mapping[str, int] | None = None
    pages: AdapterPages | None = None
    traits: Traits = PLAIN
    waiters: int = 0
    refs: int = 0
    unloading: bool = False
    placed_at: float = 0.0
    failure: Failure | None = None

    @property
    def state(self) -> Literal["loading", "resident", "draining"]:
        if self.pages is None:
            return "loading"
        return "draining" if self.unloading else "resident"


NOBODY: Mapping[Residence, int] = MappingProxyType({})


class Residency:
    """All residences and their pages. Not thread-safe: the owner calls every method under one lock.

    The following conditions hold after every call, and `validate` checks them:
        * a digest has one residence at most;
        * of every module, each page but the zero page is free or belongs to one residence, never both, never two;
        * a residence without pages has a waiter: nothing is LOADING that nobody waits for;
        * a residence that is unloading has a lease;
        * references exist to pages alone: `refs` is 0 while LOADING.

    Attributes:
        min_residency: seconds for which an adapter that others wait for keeps the pages it got, unless it is urgent:
            else two that do not fit together would take turns request by request.
        pinned: digests that keep their pages once they have them, until they are unloaded. The owner sets it.
    """

    def __init__(
        self, capacities: Mapping[str, int], counters: Counters | None = None, min_residency: float = 0.0
    ) -> None:
        self.min_residency = min_residency
        self._counters = counters or Counters()
        self._pages = PageAllocator(capacities)
        self._residences: dict[str, Residence] = {}
        self._recency: OrderedDict[str, Residence] = OrderedDict()  # those with pages, the least recently used first
        self.pinned: frozenset[str] = frozenset()

    def get(self, digest: str) -> Residence | None:
        return self._residences.get(digest)

    def all(self) -> Iterable[Residence]:
        """Every residence."""
        return self._residences.values()

    def pages_by_state(self) -> dict[str, Counter[PageState]]:
        """Module -> its pages but the zero page: free, used by requests, else pinned, else idle till room is needed."""
        found = {module: Counter[PageState]({"free": self._pages.num_free(module)}) for module in self._pages.usable}
        for residence in self._recency.values():
            idle: PageState = "pinned" if residence.digest in self.pinned else "idle"
            for module, ids in (residence.pages or {}).items():
                found[module]["used" if residence.refs else idle] += len(ids)
        return found

    def acquire(self, digest: str) -> Residence:
        """Adds a waiter. A draining residence is called back: the same digest is the same bytes."""
        residence = self._residences.setdefault(digest, Residence(digest))
        residence.waiters += 1
        residence.unloading = False
        self._touch(residence)
        return residence

    def place(self, members: Sequence[Residence], now: float = 0.0, *, urgent: bool = True) -> list[Residence] | None:
        """Turns a waiter of each member into a reference, giving pages to those without: all of them or none.

        Makes room by evicting residences without references or pins: first those that nobody waits for, least recently
        used first; only if that suffices, and none whose pages are not needed.

        Args:
            members: of one request.
            now: seconds on any clock.
            urgent: whatever `min_residency` says.

        Returns:
            What was evicted; one that others wait for is LOADING again. None if there is no room now.

        Raises:
            RuntimeError: what a member needs is unknown, as its load is not done.
        """
        absent = [member for member in dict.fromkeys(members) if member.pages is None]
        if unknown := [member.digest for member in absent if member.counts is None]:
            raise RuntimeError(f"placed before they were loaded: {unknown}")
        needed = _total(absent)
        spared = [] if urgent else [r for r in self._recency.values() if now - r.placed_at < self.min_residency]
        victims = self._victims(needed, [*members, *(r for r in spared if r.waiters)])
        if victims is None:
            return None
        for victim in victims:
            self._evict(victim, "room")
        for member in absent:
            member.pages = self._pages.allocate(member.counts or {})
            member.placed_at = now
            self._recency[member.digest] = member
        for member in members:
            member.waiters -= 1
            member.refs += 1
            self._touch(member)
        return victims

    def has_free(self, counts: Mapping[str, int]) -> bool:
        """Whether so many pages are free."""
        return all(count <= self._pages.num_free(module) for module, count in counts.items())

    def prefetch(self, digest: str, counts: Mapping[str, int]) -> Residence | None:
        """Gives an absent adapter pages that are free, for whoever may ask for it; None if there are too few.

        It is the first to leave.
        """
        if digest in self._residences or (pages := self._pages.allocate(counts)) is None:
            return None
        residence = self._residences[digest] = Residence(digest, counts, pages)
        self._recency[digest] = residence
        self._recency.move_to_end(digest, last=False)
        return residence

    def fits(self, members: Sequence[Residence], leaving: Iterable[Residence]) -> bool:
        """Whether an urgent `place` would find room once references to `leaving`, one a mention, were displaced."""
        absent = [member for member in dict.fromkeys(members) if member.pages is None]
        return self._victims(_total(absent), members, Counter(leaving)) is not None

    def displace(self, members: Sequence[Residence]) -> None:
        """Turns a reference to each member into a waiter; its pages are idle with the last one."""
        for member in members:
            member.refs -= 1
            member.waiters += 1

    def misfit(self, members: Sequence[Residence]) -> str | None:
        """Why `place` of these could not succeed even if all other leases were gone; None if it could."""
        unique = list(dict.fromkeys(members))
        pinned = [self._recency[digest] for digest in self.pinned if digest in self._recency]
        held = _total(residence for residence in pinned if residence not in unique)
        room = {module: usable - held.get(module, 0) for module, usable in self._pages.usable.items()}
        return shortage(_total(unique), room, several=len(unique) > 1)

    def release(self, residence: Residence, *, placed: bool) -> bool:
        """Ends one lease, and with the last one what is LOADING or DRAINING.

        Returns:
            True when the residence is FREE after this.
        """
        if self._residences.get(residence.digest) is not residence:
            return True
        if placed:
            residence.refs -= 1
        else:
            residence.waiters -= 1
        self._touch(residence)
        if residence.refs or residence.waiters or residence.state == "resident":
            return False
        self._free(residence, "unload")
        return True

    def fail(self, residence: Residence, failure: Failure) -> None:
        """Ends a residence whose adapter cannot be had, whoever waits for it; they read the failure.

        Raises:
            RuntimeError: somebody uses its pages.
        """
        if residence.refs:
            raise RuntimeError(f"failed under those who use it: {residence}")
        residence.failure = failure
        self._free(residence, "failure")

    def unload(self, digest: str) -> None:
        """Gives the pages back, pinned or not: now if nobody holds them, else with the last lease."""
        residence = self._residences.get(digest)
        if residence is None:
            return
        if residence.refs or residence.waiters:
            residence.unloading = True
        else:
            self._free(residence, "unload")

    def reset(self) -> list[Residence]:
        """Takes all pages back, pinned or not, as what was in them is lost.

        Returns:
            What is LOADING again, as others wait for it.

        Raises:
            RuntimeError: somebody uses its pages.
        """
        lost = list(self._recency.values())
        if used := [residence.digest for residence in lost if residence.refs]:
            raise RuntimeError(f"lost under those who use them: {used}")
        for residence in lost:
            self._evict(residence, "failure")
        return [residence for residence in lost if residence.waiters]

    def validate(self) -> None:
        """Raises RuntimeError naming the condition of this class that does not hold."""
        self._pages.validate()
        for module, usable in self._pages.usable.items():
            owned = [page for r in self._residences.values() if r.pages for page in r.pages.get(module, ())]
            accounted = sorted([*owned, *self._pages.free_pages(module)])
            if accounted != list(self._pages.pages(module)):
                raise RuntimeError(f"{module}: pages are leaked or have two owners: {accounted} of {usable}")
        for residence in self._residences.values():
            if (residence.pages is None) == (residence.digest in self._recency):
                raise RuntimeError(f"pages and recency disagree: {residence}")
            if min(residence.refs, residence.waiters) < 0:
                raise RuntimeError(f"a lease was released twice: {residence}")
            if residence.pages is None and (residence.refs or not residence.waiters):
                raise RuntimeError(f"loading for nobody, or referenced without pages: {residence}")
            if residence.unloading and not (residence.refs or residence.waiters):
                raise RuntimeError(f"unloading without a lease: {residence}")

    def _victims(
        self, needed: Mapping[str, int], spared: Sequence[Residence], leaving: Mapping[Residence, int] = NOBODY
    ) -> list[Residence] | None:
        """The residences to evict, none that is spared, so that `needed` pages are free; None if no set would do."""
        short = {module: count - self._pages.num_free(module) for module, count in needed.items()}
        unused = (r for r in self._recency.values() if r.refs <= leaving.get(r, 0))
        idle = [r for r in unused if r.digest not in self.pinned and r not in spared]
        candidates = sorted(idle, key=lambda r: r.waiters > 0)
        victims: list[Residence] = []
        for candidate in candidates:
            if all(count <= 0 for count in short.values()):
                break
            victims.append(candidate)
            _add(short, candidate, -1)
        if any(count > 0 for count in short.values()):
            return None
        for victim in victims[::-1]:  # some hold other modules' pages, or were needless once a larger one was found
            _add(short, victim, 1)
            if any(count > 0 for count in short.values()):
                _add(short, victim, -1)
            else:
                victims.remove(victim)
        return victims

    def _evict(self, residence: Residence, reason: Reason) -> None:
        if residence.waiters:
            self._give_back(residence, reason)
        else:
            self._free(residence, reason)

    def _free(self, residence: Residence, reason: Reason) -> None:
        if self._residences.get(residence.digest) is residence:
            del self._residences[residence.digest]
            self._give_back(residence, reason)

    def _give_back(self, residence: Residence, reason: Reason) -> None:
        if residence.pages is not None:
            self._counters.evicted("device", reason, residence.digest)
            self._pages.release(residence.pages)
            residence.pages = None
            del self._recency[residence.digest]

    def _touch(self, residence: Residence) -> None:
        if residence.pages is not None:
            self._recency.move_to_end(residence.digest)


def _total(residences: Iterable[Residence]) -> dict[str, int]:
    total: dict[str, int] = {}
    for residence in residences:
        for module, count in (residence.counts or {}).items():
            total[module] = total.get(module, 0) + count
    return total


def _add(short: dict[str, int], residence: Residence, sign: int) -> None:
    for module in short:
        short[module] += sign * len((residence.pages or {}).get(module, ()))
