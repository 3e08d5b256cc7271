"""Many requests at random, from several threads: each is served, with its own adapter."""

import threading
from collections import deque
from itertools import chain
from queue import SimpleQueue

import numpy as np
import pytest

from openlora_jax.adapters.lease import Lease
from openlora_jax.adapters.quarantine import LONGEST_WAIT
from tests.openlora_jax.adapters.fakes import CAPACITIES, SIZE, SMALL, TIMEOUT, Facts, World

CHURN = 60
"""Requests of each thread."""


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_served_whatever_fits_into_host_memory(world: World, seed: int) -> None:
    """Requests for mixes of a few adapters, some of them cancelled; those that came last are placed first."""
    rng = np.random.default_rng(seed)
    world.open(host_bytes=int(rng.integers(1, 5)) * SIZE, threads=int(rng.integers(1, 4)), prefetch=seed % 2 == 0)
    mixes = [rng.choice(list(SMALL), size, replace=False) for size in rng.integers(1, 4, 40)]
    live = [world.cache.acquire(*((digest.upper(), str(digest)) for digest in mix)) for mix in mixes]
    while live:
        ended = [leases for leases in reversed(live) if rng.random() < 0.02 or world.cache.place(*leases)]
        for lease in chain.from_iterable(ended):
            lease.release()
        live = [leases for leases in live if leases not in ended]
        world.cache.prefetch()
        world.cache.validate()
        if not ended:
            world.told.get(timeout=TIMEOUT)


MIXED = {
    **{digest: {"q_proj": 1} for digest in "abcd"},
    **{digest: {"q_proj": 1, "v_proj": 1} for digest in "ef"},
    "g": {"q_proj": 2},
    "h": {"q_proj": 3, "v_proj": 2},
}


@pytest.mark.parametrize("seed", range(20))
def test_idle_time_between_requests_mixes_nothing_up(world: World, seed: int) -> None:
    """Adapters of many sizes, host memory for a few, reads ahead, unloads, artifacts that come and go."""
    rng = np.random.default_rng(seed)
    world.source.facts = {digest: Facts(pages) for digest, pages in MIXED.items()}
    world.open(host_bytes=int(rng.integers(2, 7)) * SIZE, threads=int(rng.integers(1, 4)), prefetch=True)
    running: list[Lease] = []
    for _ in range(8 * CHURN):
        digest = str(rng.choice(list(MIXED)))
        match rng.choice(["run", "run", "run", "end", "end", "idle", "idle", "idle", "unload", "break", "mend"]):
            case "run":
                lease = world.ready(digest)
                if world.cache.place(lease):
                    running.append(lease)
                else:
                    lease.release()
            case "end" if running:
                running.pop(int(rng.integers(len(running)))).release()
            case "idle":
                world.cache.prefetch()
            case "unload":
                world.cache.unload(digest)
            case "break":
                world.source.broken[digest] = FileNotFoundError("gone")
            case "mend":
                world.source.broken.clear()
                world.now += LONGEST_WAIT
        world.cache.validate()
        assert not [lease for lease in running if lease.error]
        assert [world.owner(lease) for lease in running] == [
            {sorted(MIXED).index(lease.digest) + 1.0} for lease in running
        ]
    for lease in running:
        lease.release()
    assert world.cache.counters.snapshot().prefetches["host"]


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
        if lease.released:
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
