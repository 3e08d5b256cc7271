"""The residency states against a small model, by random steps: no page has two owners or none, nothing is lost or left
over, and nobody loses pages that a lease refers to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openlora_jax.adapters.residency import Residence, Residency
from tests.openlora_jax.adapters.cases import BROKEN, CAPACITIES, COUNTS
from tests.openlora_jax.adapters.machines import FEW_OR_MANY_STEPS, take_steps

DIGESTS = st.sampled_from(sorted(COUNTS))
MIN_RESIDENCY = 3.0


@dataclass(eq=False)
class Lease:
    residence: Residence
    placed: bool = False


@dataclass
class Model:
    """What is true, kept by the rules alone.

    Attributes:
        leases: all that were not released.
        pages: what each adapter owns; an adapter without is not on the device.
        since: when it got them.
        unloading: adapters that leave with their last lease.
        pinned: adapters that are not evicted.
    """

    leases: list[Lease] = field(default_factory=list)
    pages: dict[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    unloading: set[str] = field(default_factory=set)
    pinned: frozenset[str] = frozenset()

    def held(self, digest: str, *, placed: bool) -> int:
        return sum(
            self.lives(lease) and lease.residence.digest == digest and lease.placed == placed for lease in self.leases
        )

    def lives(self, lease: Lease) -> bool:
        return lease.residence.failure is None

    def state(self, digest: str) -> str | None:
        leased = self.held(digest, placed=True) + self.held(digest, placed=False)
        if digest in self.pages:
            return "draining" if digest in self.unloading and leased else "resident"
        return "loading" if leased else None

    def gives_back(self, digest: str) -> None:
        del self.pages[digest], self.since[digest]


class ResidencyMachine(RuleBasedStateMachine):
    """Requests, mixes, displacement, prefetches, unloads, pins, failures, a device that loses all; and time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency(CAPACITIES, min_residency=MIN_RESIDENCY)
        self.model = Model()
        self.now = 10.0

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(digest=DIGESTS)
    def acquire(self, digest: str) -> None:
        residence = self.residency.acquire(digest)
        residence.counts = COUNTS[digest]
        self.model.leases.append(Lease(residence))
        self.model.unloading.discard(digest)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.model.leases.pop(data.draw(st.integers(0, len(self.model.leases) - 1)))
        digest = lease.residence.digest
        self.residency.release(lease.residence, placed=lease.placed)
        last = not self.model.held(digest, placed=True) + self.model.held(digest, placed=False)
        if self.model.lives(lease) and last and digest in self.model.unloading:
            self.model.unloading.discard(digest)
            if digest in self.model.pages:
                self.model.gives_back(digest)

    @rule(data=st.data(), urgent=st.booleans())
    def place(self, data: st.DataObject, urgent: bool) -> None:
        waiting = [lease for lease in self.model.leases if self.model.lives(lease) and not lease.placed]
        if not waiting:
            return
        chosen = data.draw(st.lists(st.sampled_from(waiting), min_size=1, max_size=3, unique=True))
        members = [lease.residence for lease in chosen]
        could = self.residency.fits(members, [])
        evicted = self.residency.place(members, self.now, urgent=urgent)
        assert could or evicted is None
        assert not (could and urgent) or evicted is not None
        if evicted is None:
            return
        for victim in evicted:
            assert not self.model.held(victim.digest, placed=True)
            assert victim.digest not in self.model.pinned
            assert victim not in members
            fresh = self.now - self.model.since[victim.digest] < MIN_RESIDENCY
            assert urgent or not (fresh and self.model.held(victim.digest, placed=False))
            self.model.gives_back(victim.digest)
        for lease in chosen:
            digest = lease.residence.digest
            if digest not in self.model.pages:
                self.model.pages[digest] = lease.residence.pages or {}
                self.model.since[digest] = self.now
            lease.placed = True

    @rule(data=st.data())
    def displace(self, data: st.DataObject) -> None:
        placed = [lease for lease in self.model.leases if self.model.lives(lease) and lease.placed]
        if placed:
            chosen = data.draw(st.lists(st.sampled_from(placed), min_size=1, max_size=3, unique=True))
            self.residency.displace([lease.residence for lease in chosen])
            for lease in chosen:
                lease.placed = False

    @rule(digest=DIGESTS)
    def prefetch(self, digest: str) -> None:
        absent = self.model.state(digest) is None
        room = all(self.free(module) >= count for module, count in COUNTS[digest].items())
        assert self.residency.has_free(COUNTS[digest]) == room
        residence = self.residency.prefetch(digest, COUNTS[digest])
        assert (residence is not None) == (absent and room)
        if residence:
            self.model.pages[digest] = residence.pages or {}
            self.model.since[digest] = 0.0

    @rule(digest=DIGESTS)
    def unload(self, digest: str) -> None:
        self.residency.unload(digest)
        if self.model.held(digest, placed=True) + self.model.held(digest, placed=False):
            self.model.unloading.add(digest)
        elif digest in self.model.pages:
            self.model.gives_back(digest)

    @rule(digests=st.frozensets(DIGESTS))
    def pin(self, digests: frozenset[str]) -> None:
        self.residency.pinned = self.model.pinned = digests

    @rule()
    def reset(self) -> None:
        """The device loses everything."""
        placed = [lease for lease in self.model.leases if self.model.lives(lease) and lease.placed]
        self.residency.displace([lease.residence for lease in placed])
        for lease in placed:
            lease.placed = False
        found = {residence.digest for residence in self.residency.reset()}
        assert found == {digest for digest in self.model.pages if self.model.held(digest, placed=False)}
        for digest in list(self.model.pages):
            self.model.gives_back(digest)

    @rule(digest=DIGESTS)
    def fail(self, digest: str) -> None:
        residence = self.residency.get(digest)
        if residence and residence.state == "loading":
            self.residency.fail(residence, BROKEN)
            self.model.unloading.discard(digest)

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        self.residency.validate()
        for digest in COUNTS:
            residence = self.residency.get(digest)
            assert (residence.state if residence else None) == self.model.state(digest)
            if residence:
                assert residence.pages == self.model.pages.get(digest)
                assert residence.refs == self.model.held(digest, placed=True)
                assert residence.waiters == self.model.held(digest, placed=False)
        for digest, pages in self.model.pages.items():
            assert {module: len(ids) for module, ids in pages.items()} == COUNTS[digest]

    @invariant()
    def no_page_has_two_owners_and_none_is_lost(self) -> None:
        for module, capacity in CAPACITIES.items():
            owned = [page for pages in self.model.pages.values() for page in pages.get(module, ())]
            assert len(owned) == len(set(owned))
            assert 0 not in owned
            assert self.residency.pages_by_state()[module]["free"] == self.free(module) <= capacity - 1

    def free(self, module: str) -> int:
        return CAPACITIES[module] - 1 - sum(len(pages.get(module, ())) for pages in self.model.pages.values())

    def teardown(self) -> None:
        for lease in self.model.leases:
            self.residency.release(lease.residence, placed=lease.placed)
        for digest in COUNTS:
            self.residency.unload(digest)
        assert not list(self.residency.all())
        assert [self.residency.pages_by_state()[module]["free"] for module in CAPACITIES] == [5, 3]


@FEW_OR_MANY_STEPS
def test_the_states_are_those_of_a_small_model(steps: int) -> None:
    take_steps(ResidencyMachine, steps)
