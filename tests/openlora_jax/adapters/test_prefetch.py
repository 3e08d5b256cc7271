"""What idle time is used for: what was asked for most comes closer, into room that is free."""

from openlora_jax.adapters.lease import Lease
from openlora_jax.adapters.quarantine import FIRST_WAIT
from tests.openlora_jax.adapters.fakes import CAPACITIES, LOAD_TIMEOUT, SIZE, TIMEOUT, World, open_cache


def reopened(world: World, **asked_before: float) -> None:
    """A cache after a start, whose last one saw these requests; host memory for three adapters of one page."""
    world.cache.close()
    world.cache = open_cache(
        world.source,
        world.pool,
        CAPACITIES,
        host_bytes=3 * SIZE,
        load_timeout=LOAD_TIMEOUT,
        prefetch=True,
        asked_before=asked_before,
        clock=lambda: world.now,
    )
    world.cache.on_ready = world.told.put


def test_idle_time_brings_what_was_asked_for_most_to_the_device(world: World) -> None:
    reopened(world, a=1.0, b=5.0, c=3.0, d=2.0)
    assert not world.cache.prefetch(), "nothing is in host memory yet"
    assert [world.told.get(timeout=TIMEOUT) for _ in range(3)] == ["b", "c", "d"]
    assert world.source.reads == ["b", "c", "d"], "there is no room for more"
    for _ in range(3):
        assert world.cache.prefetch()
    assert not world.cache.prefetch()
    assert world.states() == {"b": "resident", "c": "resident", "d": "resident"}
    lease = world.asked("c")
    assert lease.resident
    assert world.cache.place(lease)
    assert world.owner(lease) == {3.0}
    counts = world.cache.counters.snapshot()
    assert (counts.prefetches, counts.prefetch_hits) == ({"host": 3, "device": 3}, {"device": 1})


def test_after_a_start_no_more_is_read_than_fits_and_one(world: World) -> None:
    """Sizes are not known before the first read."""
    reopened(world, a=9.0, wide=8.0, b=7.0, c=6.0)
    world.cache.prefetch()
    assert [world.told.get(timeout=TIMEOUT) for _ in range(2)] == ["a", "wide"]
    while world.cache.prefetch():
        pass
    world.cache.close()
    assert world.source.reads == ["a", "wide"]
    assert world.states() == {"a": "resident"}


def test_what_was_prefetched_is_the_first_to_leave(world: World) -> None:
    world.open(prefetch=True)
    for digest in "ab":
        world.placed(digest).release()
    world.cache.load("C", "c")
    assert world.cache.prefetch()
    world.placed("d").release()
    assert world.states() == {"a": "resident", "b": "resident", "c": "host", "d": "resident"}
    assert not world.cache.prefetch(), "no page is free"
    assert world.cache.counters.snapshot().evictions == {("device", "unused"): 1}


def test_one_that_had_to_leave_host_memory_comes_back_when_there_is_room(world: World) -> None:
    world.open(host_bytes=2 * SIZE, threads=1, prefetch=True)
    for _ in range(3):
        world.ready("a").release()
    held = [world.ready(digest) for digest in "bc"]
    assert world.states() == {"b": "loading", "c": "loading"}
    assert not world.cache.prefetch()
    held[1].release()
    world.cache.unload("c")
    assert not world.cache.prefetch()
    assert [world.told.get(timeout=TIMEOUT) for _ in range(4)] == ["a", "b", "c", "a"]
    assert world.states() == {"a": "host", "b": "loading"}


def read_ahead_of_what_is_on_the_device(world: World) -> Lease:
    """A placed adapter that has left host memory, where there is room for it again."""
    world.open(host_bytes=2 * SIZE, threads=1, prefetch=True)
    lease = world.placed("a")
    for digest in "bc":
        world.cache.load(digest.upper(), digest)
    assert {status.digest for status in world.cache.status() if status.host_bytes} == {"b", "c"}
    world.cache.unload("c")
    return lease


def test_what_is_on_the_device_is_not_read_ahead(world: World) -> None:
    read_ahead_of_what_is_on_the_device(world).release()
    while world.cache.prefetch():
        world.cache.validate()
    wide = world.placed("wide")
    world.cache.validate()
    wide.release()
    assert world.owner(world.placed("a")) == {1.0}, "the base model would answer in its name"
    assert world.source.reads[:4] == ["a", "b", "c", "wide"]


def test_an_adapter_in_use_keeps_its_pages_when_its_artifact_is_gone(world: World) -> None:
    lease = read_ahead_of_what_is_on_the_device(world)
    world.source.broken["a"] = FileNotFoundError("gone")
    while world.cache.prefetch():
        world.cache.validate()
    wide = world.ready("wide")
    assert lease.error is None
    assert not world.cache.place(wide)
    assert world.owner(lease) == {1.0}


def test_a_request_for_what_is_read_ahead_waits_for_that_read(world: World) -> None:
    reopened(world, a=1.0)
    go = world.source.stall("a")
    world.cache.prefetch()
    lease = world.asked("a")
    go.set()
    assert lease.wait(TIMEOUT)
    assert world.cache.place(lease)
    assert world.source.reads == ["a"]
    assert not world.cache.counters.snapshot().prefetches


def test_what_cannot_be_read_or_written_is_not_tried_again_and_again(world: World) -> None:
    world.source.broken["a"] = OSError("gone")
    reopened(world, a=2.0, b=1.0)
    world.cache.prefetch()
    assert [world.told.get(timeout=TIMEOUT) for _ in range(2)] == ["a", "b"]
    world.pool.error = RuntimeError("RESOURCE_EXHAUSTED")
    assert not world.cache.prefetch()
    world.pool.error = None
    assert not world.cache.prefetch()
    world.now += FIRST_WAIT
    assert world.cache.prefetch()
    assert world.source.reads == ["a", "b"]


def test_nothing_is_fetched_from_elsewhere_ahead(world: World) -> None:
    world.source.remote |= set("ac")
    reopened(world, a=3.0, b=2.0, c=1.0)
    world.cache.prefetch()
    assert world.told.get(timeout=TIMEOUT) == "b"
    world.cache.prefetch()
    world.cache.close()
    assert world.source.reads == ["b"]


def out_of_memory(world: World) -> None:
    """An adapter that was there, had to leave, and could come back."""
    world.open(host_bytes=2 * SIZE, threads=2, prefetch=True)
    for digest in "abc":
        world.cache.load(digest.upper(), digest)
    world.cache.unload("c")
    assert world.states() == {"b": "host"}


def test_what_fails_is_not_read_ahead_right_after(world: World) -> None:
    out_of_memory(world)
    world.source.broken["a"] = OSError("gone")
    assert "tried again in 1 s" in str(world.ready("a").error)
    world.cache.prefetch()
    world.cache.close()
    assert world.source.reads == ["a", "b", "c", "a"]


def test_what_hangs_is_not_read_ahead_beside(world: World) -> None:
    out_of_memory(world)
    go = world.source.stall("a")
    lease = world.asked("a")
    world.now += LOAD_TIMEOUT
    assert lease.wait(TIMEOUT)
    lease.release()
    world.now += FIRST_WAIT
    world.cache.prefetch()
    go.set()
    world.cache.close()
    assert world.source.reads == ["a", "b", "c", "a"]


def test_what_was_unloaded_stays_away(world: World) -> None:
    world.open(prefetch=True)
    world.placed("a").release()
    world.cache.unload("a")
    assert not world.cache.prefetch()
    assert world.states() == {}
    assert world.source.reads == ["a"]


def test_without_the_setting_nothing_comes_by_itself(world: World) -> None:
    world.cache.load("A", "a")
    assert not world.cache.prefetch()
    assert world.states() == {"a": "host"}
