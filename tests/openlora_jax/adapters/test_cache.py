"""The adapter cache with a fake store that reads when the test says so, and a fake pool that records what it was told.

An adapter named `x` is one float32 array of `SIZE` bytes per page, filled with a number of its own: what is read back
from the fake pool's pages says whose they are.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from queue import SimpleQueue

import numpy as np
import pytest

from openlora_jax.adapters.cache import RETRY_AFTER, AdapterCache, Lease
from openlora_jax.adapters.host_cache import AdapterTensors
from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.adapters.registry import Registration
from openlora_jax.errors import AdapterUnavailable

TIMEOUT = 30.0
BASE = "base"
SIZE = 64
CAPACITIES = {"q_proj": 4, "v_proj": 3}
SMALL = "abcdefgh"
"""Adapters of one page."""
CHURN = 60
"""Requests of each thread."""


@dataclass(frozen=True)
class Facts:
    pages: Mapping[str, int]
    base_digest: str = BASE


@dataclass
class FakeSource:
    """Adapters by digest; a read of one in `stalled` waits for its event, one in `broken` raises."""

    facts: dict[str, Facts] = field(default_factory=dict)
    stalled: dict[str, threading.Event] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    begun: SimpleQueue[str] = field(default_factory=SimpleQueue)
    names: dict[str, str] = field(default_factory=dict)

    def registrations(self) -> Mapping[str, Registration]:
        return {name: Registration(digest, "") for name, digest in self.names.items()}

    def manifest(self, digest: str) -> Facts:
        return self.facts[digest]

    def read(self, digest: str) -> tuple[Facts, AdapterTensors]:
        self.reads.append(digest)
        self.begun.put(digest)
        if digest in self.stalled:
            assert self.stalled[digest].wait(TIMEOUT)
        if digest in self.broken:
            raise self.broken[digest]
        facts = self.facts[digest]
        value = sorted(self.facts).index(digest) + 1
        return facts, {module: np.full((count, SIZE // 4), value, np.float32) for module, count in facts.pages.items()}

    def stall(self, digest: str) -> threading.Event:
        return self.stalled.setdefault(digest, threading.Event())


@dataclass
class FakePool:
    contents: dict[tuple[str, int], float] = field(default_factory=dict)
    error: Exception | None = None

    def stage(self, counts: Mapping[str, int], tensors: AdapterTensors) -> AdapterTensors:
        return tensors

    def write(self, pages: AdapterPages, tensors: AdapterTensors) -> None:
        if self.error:
            raise self.error
        for module, ids in pages.items():
            for source, page in enumerate(ids):
                self.contents[module, page] = float(tensors[module][source, 0])


@dataclass
class World:
    source: FakeSource = field(default_factory=FakeSource)
    pool: FakePool = field(default_factory=FakePool)
    now: float = 0.0
    told: SimpleQueue[str] = field(default_factory=SimpleQueue)

    def open(self, host_bytes: int = 1 << 20, threads: int = 2) -> None:
        self.cache = AdapterCache(
            self.source,
            self.pool,
            CAPACITIES,
            base_digest=BASE,
            host_bytes=host_bytes,
            threads=threads,
            clock=lambda: self.now,
        )
        self.cache.on_ready = self.told.put

    def asked(self, digest: str) -> Lease:
        """A request for one adapter."""
        [lease] = self.cache.acquire((digest.upper(), digest))
        return lease

    def ready(self, digest: str) -> Lease:
        lease = self.asked(digest)
        assert lease.wait(TIMEOUT)
        return lease

    def placed(self, digest: str) -> Lease:
        lease = self.ready(digest)
        assert self.cache.place(lease)
        return lease

    def owner(self, lease: Lease) -> set[float]:
        """Whose numbers lie in a lease's pages."""
        return {self.pool.contents[module, page] for module, ids in lease.pages.items() for page in ids}

    def states(self) -> dict[str, str]:
        return {status.digest: status.state for status in self.cache.status()}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    for digest in SMALL:
        world.source.facts[digest] = Facts({"q_proj": 1})
    world.source.facts["wide"] = Facts({"q_proj": 3, "v_proj": 2})
    world.source.facts["huge"] = Facts({"q_proj": 4})
    world.source.names = {digest.upper(): digest for digest in world.source.facts}
    world.open()
    yield world
    for event in world.source.stalled.values():
        event.set()
    world.cache.validate()
    world.cache.close()


def test_from_disk_to_device(world: World) -> None:
    go = world.source.stall("a")
    lease = world.asked("a")
    seen = [(lease.ready, world.cache.place(lease), world.states()["a"])]
    go.set()
    assert world.told.get(timeout=TIMEOUT) == "a"
    seen.append((lease.ready, world.cache.place(lease), world.states()["a"]))
    assert seen == [(False, False, "loading"), (True, True, "resident")]
    assert world.cache.place(lease)
    assert {module: len(ids) for module, ids in lease.pages.items()} == {"q_proj": 1}
    assert world.owner(lease) == {1.0}


def test_pages_are_not_to_be_had_before_the_lease_is_placed(world: World) -> None:
    lease = world.ready("a")
    with pytest.raises(RuntimeError, match="not placed"):
        _ = lease.pages


def test_many_requests_cost_one_read_and_one_write(world: World) -> None:
    go = world.source.stall("a")
    leases = [world.asked("a") for _ in range(5)]
    go.set()
    assert all(lease.wait(TIMEOUT) for lease in leases)
    assert world.cache.place(leases[0])
    world.pool.error = RuntimeError("a second write")
    assert all(world.cache.place(lease) for lease in leases)
    assert world.source.reads == ["a"]
    assert world.cache.status()[0].requests == 5


def test_a_released_adapter_is_there_for_the_next_request(world: World) -> None:
    world.placed("a").release()
    again = world.asked("a")
    assert again.ready
    assert world.cache.place(again)
    assert world.source.reads == ["a"]


def test_an_evicted_adapter_comes_back_from_host_memory(world: World) -> None:
    world.placed("a").release()
    world.placed("wide").release()
    assert world.states()["a"] == "host"
    assert world.owner(world.placed("a")) == {1.0}
    assert world.source.reads == ["a", "wide"]


def test_pages_in_use_are_not_taken(world: World) -> None:
    running = world.placed("a")
    wide = world.ready("wide")
    assert not world.cache.place(wide)
    assert wide.ready
    assert wide.error is None
    running.release()
    running.release()
    assert world.cache.place(wide)


def test_requests_that_wait_do_not_hold_the_room_they_wait_for(world: World) -> None:
    for digest in "abc":
        world.placed(digest).release()
    waiting = [world.ready(digest) for digest in "abc"]
    wide = world.ready("wide")
    assert world.cache.place(wide)
    assert all(lease.ready for lease in waiting)
    wide.release()
    assert [world.cache.place(lease) for lease in waiting] == [True] * 3
    assert [world.owner(lease) for lease in waiting] == [{1.0}, {2.0}, {3.0}]


def test_an_evicted_adapter_that_is_waited_for_is_read_again(world: World) -> None:
    world.open(host_bytes=1)
    world.placed("a").release()
    waiting = world.ready("a")
    world.placed("wide").release()
    assert waiting.wait(TIMEOUT)
    assert world.cache.place(waiting)
    assert world.source.reads == ["a", "wide", "a"]


def test_a_mix_is_placed_as_a_whole_or_not_at_all(world: World) -> None:
    running = [world.placed(digest) for digest in "ab"]
    mix = [world.ready(digest) for digest in "cd"]
    assert not world.cache.place(*mix)
    wide = world.ready("e")
    assert world.cache.place(wide)
    running[0].release()
    running[1].release()
    assert world.cache.place(*mix)
    assert [world.owner(lease) for lease in mix] == [{3.0}, {4.0}]


def test_an_adapter_larger_than_the_pool_fails_before_it_is_read(world: World) -> None:
    lease = world.ready("huge")
    assert isinstance(lease.error, AdapterUnavailable)
    assert str(lease.error) == (
        "adapter 'HUGE' (huge) cannot be served: it needs 4 pages of q_proj and the pool can give 3; raise pool_pages"
    )
    assert world.source.reads == []


def test_a_mix_larger_than_the_pool_fails_alone(world: World) -> None:
    mix = [world.ready("wide"), world.ready("a")]
    assert not world.cache.place(*mix)
    assert "needs 4 pages of q_proj and the pool can give 3" in str(mix[0].error)
    assert world.cache.place(world.ready("wide"))


def test_an_adapter_of_another_base_is_refused(world: World) -> None:
    world.source.facts["a"] = Facts({"q_proj": 1}, base_digest="other")
    assert "converted for base other" in str(world.ready("a").error)


def test_a_failed_load_fails_those_who_wait_for_it_and_nobody_else(world: World) -> None:
    world.source.broken["a"] = OSError("the disk is on fire")
    go = world.source.stall("a")
    first, second = world.cache.acquire(("A", "a"), ("alias", "a"))
    other = world.ready("b")
    go.set()
    assert first.wait(TIMEOUT)
    assert [str(lease.error) for lease in (first, second)] == [
        "adapter 'A' (a) cannot be served: the disk is on fire",
        "adapter 'alias' (a) cannot be served: the disk is on fire",
    ]
    assert not first.ready
    assert not world.cache.place(first)
    assert world.cache.place(other)
    assert other.error is None
    first.release()
    second.release()


def test_a_failed_load_is_tried_again_but_not_at_once(world: World) -> None:
    world.source.broken["a"] = OSError("flaky")
    world.ready("a").release()
    for _ in range(10):
        lease = world.asked("a")
        assert isinstance(lease.error, AdapterUnavailable)
        lease.release()
    assert world.source.reads == ["a"]
    del world.source.broken["a"]
    world.now += RETRY_AFTER
    assert world.cache.place(world.ready("a"))


def test_a_failed_write_fails_its_request_and_gives_the_pages_back(world: World) -> None:
    mix = [world.ready("wide")]
    world.pool.error = RuntimeError("RESOURCE_EXHAUSTED")
    assert not world.cache.place(*mix)
    assert "RESOURCE_EXHAUSTED" in str(mix[0].error)
    mix[0].release()
    world.pool.error = None
    world.cache.validate()
    assert world.cache.place(world.ready("wide"))


def test_a_request_that_left_before_its_load_began_costs_no_read(world: World) -> None:
    world.open(threads=1)
    go = world.source.stall("a")
    world.asked("a")
    assert world.source.begun.get(timeout=TIMEOUT) == "a"
    left, stays = world.asked("b"), world.asked("c")
    left.release()
    go.set()
    assert stays.wait(TIMEOUT)
    assert world.source.reads == ["a", "c"]


def test_a_load_that_everybody_left_still_serves_the_next_one(world: World) -> None:
    go = world.source.stall("a")
    lease = world.asked("a")
    assert world.source.begun.get(timeout=TIMEOUT) == "a"
    lease.release()
    assert world.states() == {}
    late = world.asked("a")
    go.set()
    assert late.wait(TIMEOUT)
    assert world.source.reads == ["a"]


def test_host_memory_bounds_how_many_waiting_adapters_are_read(world: World) -> None:
    world.open(host_bytes=2 * SIZE, threads=1)
    leases = {digest: world.asked(digest) for digest in "abcd"}
    assert leases["b"].wait(TIMEOUT)
    assert world.source.reads == ["a", "b"]
    assert world.cache.place(leases["a"])
    assert leases["c"].wait(TIMEOUT)
    assert not leases["d"].ready
    leases["b"].release()
    assert leases["d"].wait(TIMEOUT)
    assert sum(status.host_bytes for status in world.cache.status()) == 2 * SIZE


def test_a_mix_larger_than_host_memory_is_read_whole(world: World) -> None:
    world.open(host_bytes=1, threads=1)
    mix = world.cache.acquire(("A", "a"), ("B", "b"), ("C", "c"))
    younger = world.asked("d")
    assert all(lease.wait(TIMEOUT) for lease in mix)
    assert not younger.ready
    assert world.cache.place(*mix)
    assert younger.wait(TIMEOUT)


def test_what_a_request_lost_that_was_ready_is_read_without_room(world: World) -> None:
    """Not the oldest: an engine may wait for it before it places the oldest."""
    world.open(host_bytes=2 * SIZE)
    world.placed("a").release()
    oldest, loser = world.ready("b"), world.ready("a")
    go = [world.source.stall(digest) for digest in ("wide", "c")]
    wide, younger = world.asked("wide"), world.asked("c")
    for event in go:
        event.set()
    assert all(lease.wait(TIMEOUT) for lease in (wide, younger))
    assert world.cache.place(wide)
    assert loser.wait(TIMEOUT)
    assert sorted(world.source.reads) == ["a", "a", "b", "c", "wide"]
    assert oldest.ready


def test_what_the_oldest_request_lost_is_read_before_all_else(world: World) -> None:
    world.open(host_bytes=SIZE, threads=1)
    world.placed("a").release()
    oldest, wide = world.ready("a"), world.ready("wide")
    younger = [world.asked(digest) for digest in "bc"]
    assert world.cache.place(wide)
    assert oldest.wait(TIMEOUT)
    assert world.source.reads == ["a", "wide", "a"]
    wide.release()
    assert world.cache.place(oldest)
    assert younger[0].wait(TIMEOUT)
    assert world.source.reads == ["a", "wide", "a", "b"]


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_served_whatever_fits_into_host_memory(world: World, seed: int) -> None:
    """Requests for mixes of a few adapters, some of them cancelled; those that came last are placed first."""
    rng = np.random.default_rng(seed)
    world.open(host_bytes=int(rng.integers(1, 5)) * SIZE, threads=int(rng.integers(1, 4)))
    mixes = [rng.choice(list(SMALL), size, replace=False) for size in rng.integers(1, 4, 40)]
    live = [world.cache.acquire(*((digest.upper(), str(digest)) for digest in mix)) for mix in mixes]
    while live:
        ended = [leases for leases in reversed(live) if rng.random() < 0.02 or world.cache.place(*leases)]
        for lease in chain.from_iterable(ended):
            lease.release()
        live = [leases for leases in live if leases not in ended]
        world.cache.validate()
        if not ended:
            world.told.get(timeout=TIMEOUT)


def test_warming_reads_into_host_memory(world: World) -> None:
    world.cache.load("A", "a")
    assert world.states() == {"a": "host"}
    assert world.asked("a").ready
    with pytest.raises(AdapterUnavailable, match="'HUGE'"):
        world.cache.load("HUGE", "huge")


def test_unload_of_an_idle_adapter_frees_everything_at_once(world: World) -> None:
    world.placed("a").release()
    world.cache.pin("A", True)
    world.cache.unload("a")
    assert world.cache.status() == []


def test_unload_in_use_waits_for_the_last_request(world: World) -> None:
    lease = world.placed("a")
    world.cache.unload("a")
    assert world.states() == {"a": "draining"}
    assert world.owner(lease) == {1.0}
    lease.release()
    assert world.states() == {}


def test_a_request_calls_a_draining_adapter_back(world: World) -> None:
    first = world.placed("a")
    world.cache.unload("a")
    second = world.asked("a")
    assert second.ready
    first.release()
    assert world.states() == {"a": "resident"}
    assert world.cache.place(second)
    assert second.pages == first.pages


def test_unload_during_the_load_serves_those_who_wait(world: World) -> None:
    go = world.source.stall("a")
    lease = world.asked("a")
    world.cache.unload("a")
    go.set()
    assert lease.wait(TIMEOUT)
    assert world.cache.place(lease)
    assert world.states() == {"a": "draining"}
    lease.release()
    assert world.states() == {}


def test_a_pinned_adapter_stays_resident(world: World) -> None:
    world.placed("a").release()
    world.cache.pin("A", True)
    assert not world.cache.place(world.ready("wide"))
    assert world.cache.status()[0].pinned
    world.cache.pin("A", False)
    assert world.cache.place(world.ready("wide"))


def test_a_pin_follows_its_name(world: World) -> None:
    world.cache.pin("A", True)
    world.placed("a").release()
    world.source.names["A"] = "wide"
    world.placed("wide").release()
    assert [(status.digest, status.state, status.pinned) for status in world.cache.status()] == [
        ("a", "host", False),
        ("wide", "resident", True),
    ]
    assert not world.cache.place(world.ready("b"))


def test_a_pin_ends_with_its_name(world: World) -> None:
    world.cache.pin("A", True)
    world.placed("a").release()
    registered = world.source.names.pop("A")
    world.placed("wide").release()
    world.source.names["A"] = registered
    world.placed("a").release()
    assert not any(status.pinned for status in world.cache.status())


def test_unload_ends_the_pins_of_every_name(world: World) -> None:
    world.source.names["alias"] = "a"
    for name in ("A", "alias", "B"):
        world.cache.pin(name, True)
    world.cache.unload("a")
    assert [status.digest for status in world.cache.status()] == ["b"]


def test_closing_fails_what_was_not_read(world: World) -> None:
    world.open(threads=1)
    go = world.source.stall("a")
    first = world.asked("a")
    assert world.source.begun.get(timeout=TIMEOUT) == "a"
    second = world.asked("b")
    go.set()
    world.cache.close()
    assert first.ready
    assert isinstance(second.error, AdapterUnavailable)
    assert isinstance(world.asked("c").error, AdapterUnavailable)


def submit_at_random(world: World, submitted: SimpleQueue[Lease], seed: int) -> None:
    """Requests for random adapters, some of them cancelled at once, some followed by an unload."""
    rng = np.random.default_rng(seed)
    for _ in range(CHURN):
        digest = SMALL[rng.integers(len(SMALL))]
        lease = world.asked(digest)
        if rng.random() < 0.3:
            lease.release()
        elif rng.random() < 0.1:
            world.cache.unload(digest)
        submitted.put(lease)


def test_churn_from_many_threads_never_mixes_adapters_up(world: World) -> None:
    """Submitters acquire and cancel on their threads; this one places and releases, as the engine does."""
    world.open(host_bytes=4 * SIZE)
    submitted: SimpleQueue[Lease] = SimpleQueue()
    threads = [threading.Thread(target=submit_at_random, args=(world, submitted, seed)) for seed in range(3)]
    for thread in threads:
        thread.start()
    running: deque[Lease] = deque()
    for _ in range(len(threads) * CHURN):
        lease = submitted.get(timeout=TIMEOUT)
        if lease._released:
            continue
        if len(running) == CAPACITIES["q_proj"] - 1:
            running.popleft().release()
        assert lease.wait(TIMEOUT)
        assert world.cache.place(lease)
        running.append(lease)
        world.cache.validate()
        assert [world.owner(held) for held in running] == [{SMALL.index(held.digest) + 1.0} for held in running]
    for lease in running:
        lease.release()
    assert len(world.source.reads) > len(SMALL)
    assert all(status.requests == 0 for status in world.cache.status())
