"""Many requests at random, from several threads: each is served, with its own adapter."""

import threading
from collections import deque
from itertools import chain
from queue import SimpleQueue

import numpy as np
import pytest

from openlora_jax.adapters.lease import Lease
from tests.openlora_jax.adapters.fakes import CAPACITIES, SIZE, SMALL, TIMEOUT, World

CHURN = 60
"""Requests of each thread."""


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
