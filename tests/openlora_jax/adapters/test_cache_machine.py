"""All tiers by random steps, reads that end when a step says so: what is on the device is what was asked for, host
memory keeps its budget, somebody always gets on, and nothing is left over.
"""

from dataclasses import dataclass
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openlora_jax.adapters import cache
from openlora_jax.adapters.host_cache import HostAdapter
from openlora_jax.adapters.lease import Lease
from openlora_jax.adapters.loader import Loader, Reading
from openlora_jax.adapters.quarantine import LONGEST_WAIT
from tests.openlora_jax.adapters.fakes import LOAD_TIMEOUT, SIZE, Facts, World
from tests.openlora_jax.adapters.machines import FEW_OR_MANY_STEPS, take_steps

SIZES = {
    "a": {"q_proj": 1},
    "b": {"q_proj": 1},
    "c": {"v_proj": 1},
    "d": {"q_proj": 1, "v_proj": 1},
    "e": {"q_proj": 2},
    "f": {"q_proj": 3, "v_proj": 2},
    "huge": {"q_proj": 4},
}
DIGESTS = st.sampled_from(sorted(SIZES))
MOST_REQUESTS = 8
MIN_RESIDENCY = 3.0


class SteppedLoader(Loader[HostAdapter]):
    """Without threads."""

    @property
    def reading(self) -> list[str]:
        return [*self._running, *self._hanging]

    def end(self, digest: str) -> None:
        """Ends a read that has begun."""
        self._done(digest, self._result(digest))

    def _begin(self, digest: str, *, ahead: bool) -> bool:
        self._running[digest] = Reading(self._clock(), ahead)
        return True


@dataclass(eq=False)
class Request:
    leases: list[Lease]
    placed: bool = False

    @property
    def failed(self) -> bool:
        return any(lease.error for lease in self.leases)

    @property
    def ready(self) -> bool:
        return all(lease.ready for lease in self.leases)


class CacheMachine(RuleBasedStateMachine):
    """Requests for mixes, reads that end well, badly or not in time, failed writes, and what operators do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.source.facts = {digest: Facts(pages) for digest, pages in SIZES.items()}
        self.world.source.names = {digest.upper(): digest for digest in SIZES}
        with mock.patch.object(cache, "Loader", SteppedLoader):
            self.world.open(host_bytes=5 * SIZE, threads=2, min_residency=MIN_RESIDENCY, prefetch=True)
        self.cache = self.world.cache
        self.requests: list[Request] = []

    @property
    def loader(self) -> SteppedLoader:
        loader = self.cache._loader
        assert isinstance(loader, SteppedLoader)
        return loader

    @precondition(lambda self: len(self.requests) < MOST_REQUESTS)
    @rule(digests=st.lists(DIGESTS, min_size=1, max_size=3, unique=True))
    def ask(self, digests: list[str]) -> None:
        self.requests.append(Request(self.cache.acquire(*((digest.upper(), digest) for digest in digests))))

    @precondition(lambda self: self.loader.reading)
    @rule(data=st.data())
    def a_read_ends(self, data: st.DataObject) -> None:
        self.loader.end(data.draw(st.sampled_from(self.loader.reading)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), urgent=st.booleans())
    def place(self, data: st.DataObject, urgent: bool) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if not request.placed:
            ready, could = request.ready, self.cache.fits(request.leases, [])
            request.placed = self.cache.place(*request.leases, urgent=urgent)
            assert request.placed <= could <= ready
            assert request.placed or not (could and urgent)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_write_fails(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if not request.placed:
            self.world.pool.error = RuntimeError("RESOURCE_EXHAUSTED")
            request.placed = self.cache.place(*request.leases)
            self.world.pool.error = None

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def displace(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.cache.displace(*request.leases)
        request.placed = False

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.release(data.draw(st.sampled_from(self.requests)))

    @rule()
    def the_device_loses_everything(self) -> None:
        for request in self.requests:
            self.cache.displace(*request.leases)
            request.placed = False
        self.cache.reset()
        self.world.pool.contents.clear()

    @rule()
    def idle(self) -> None:
        self.cache.prefetch()

    @rule(digest=DIGESTS)
    def unload(self, digest: str) -> None:
        self.cache.unload(digest)

    @rule(digest=DIGESTS, pinned=st.booleans())
    def pin(self, digest: str, pinned: bool) -> None:
        self.cache.pin(digest.upper(), pinned)

    @rule(digest=DIGESTS)
    def a_file_breaks(self, digest: str) -> None:
        self.world.source.broken[digest] = FileNotFoundError("gone")

    @rule()
    def files_are_restored(self) -> None:
        self.world.source.broken.clear()

    @rule(seconds=st.sampled_from([0.5, 4.0, LOAD_TIMEOUT, LONGEST_WAIT]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def all_is_well(self) -> None:
        self.who_cannot_have_an_adapter_is_told()
        self.pages_hold_whose_they_are()
        self.host_memory_keeps_its_budget()
        self.requests_are_counted()
        self.somebody_gets_on()

    def who_cannot_have_an_adapter_is_told(self) -> None:
        for request in list(self.requests):
            assert request.ready or not request.placed
            if request.failed:
                assert not request.placed
                self.release(request)

    def pages_hold_whose_they_are(self) -> None:
        self.cache.validate()
        for request in self.requests:
            for lease in request.leases if request.placed else ():
                assert self.world.owner(lease) == {sorted(SIZES).index(lease.digest) + 1.0}

    def host_memory_keeps_its_budget(self) -> None:
        host = self.cache._host
        sizes = {digest: host.size(digest) for digest in host.digests()}
        assert host.nbytes == sum(sizes.values())
        assert host.held_bytes == sum(size for digest, size in sizes.items() if host.held(digest))
        assert host.nbytes <= host.budget or host.nbytes == host.held_bytes
        assert host.take_removed() == []

    def requests_are_counted(self) -> None:
        asked = [lease.digest for request in self.requests for lease in request.leases]
        found = {status.digest: status.requests for status in self.cache.status() if status.requests}
        assert found == {digest: asked.count(digest) for digest in asked}

    def somebody_gets_on(self) -> None:
        """Or somebody is ready, whose room in host memory is free for others once he is placed."""
        ready = [request.ready for request in self.requests if not request.placed]
        assert self.loader.reading or any(ready) or not ready

    def release(self, request: Request) -> None:
        self.requests.remove(request)
        for lease in request.leases:
            lease.release()

    def teardown(self) -> None:
        """Whoever is left is served, one after the other."""
        self.world.source.broken.clear()
        for request in self.requests:
            self.cache.displace(*request.leases)
        for digest in SIZES:
            self.cache.pin(digest.upper(), False)
        while self.requests:
            request = self.requests[0]
            while not request.ready and not request.failed:
                self.loader.end(self.loader.reading[0])
            assert self.cache.place(*request.leases, urgent=True) or request.failed
            self.release(request)
        while self.loader.reading:
            self.loader.end(self.loader.reading[0])
        assert not any(status.requests for status in self.cache.status())
        assert not any(by_state["used"] for by_state in self.cache.memory().pages.values())
        self.host_memory_keeps_its_budget()


@FEW_OR_MANY_STEPS
def test_adapters_of_random_requests_are_where_they_should_be(steps: int) -> None:
    take_steps(CacheMachine, steps)
