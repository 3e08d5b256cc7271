"""What the tiers count, on their own and while a cache works."""

import pytest

from openlora_jax.adapters import counters
from openlora_jax.adapters.counters import BOUNDS, Counters, Seconds
from tests.openlora_jax.adapters.fakes import TIMEOUT, World


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_durations_fall_into_the_first_bound_that_holds_them() -> None:
    seconds = Seconds()
    for value in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        seconds.add(value)
    assert (seconds.counts[0], seconds.counts[1], seconds.counts[-2], seconds.counts[-1]) == (2, 1, 1, 1)
    assert seconds.total == pytest.approx(BOUNDS[0] * 2.01 + 2 * BOUNDS[-1] + 1)


def test_a_load_has_laps_and_a_result() -> None:
    clock = Clock()
    counted = Counters(clock)
    counted.asked("a", None)
    with counted.load("a", "disk") as load:
        clock.now = 1.0
        load.lap("manifest")
        clock.now = 4.0
        load.lap("read")
        load.nbytes = 7
    with pytest.raises(OSError, match="gone"), counted.load("b", "disk"):
        raise OSError("gone")
    counts = counted.snapshot()
    assert counts.loads == {("disk", "ok"): 1, ("disk", "failed"): 1}
    assert counts.loaded_bytes["disk"] == 7
    assert (sum(counts.seconds["manifest"].counts), counts.seconds["manifest"].total) == (1, 1.0)
    assert counts.seconds["read"].total == 3.0
    used = counted.use("a")
    assert used
    assert (used.requests, used.hits, used.load_seconds, counted.since(used)) == (1, 0, 4.0, 4.0)
    assert counted.use("b") is None


def test_a_snapshot_is_the_callers_own() -> None:
    counted = Counters()
    counted.waited(1.0)
    before = counted.snapshot()
    counted.waited(1.0)
    counted.asked("a", "host")
    assert (before.seconds["wait"].total, before.lookups, before.uses) == (1.0, {}, {})


def test_uses_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "MAX_USES", 2)
    counted = Counters()
    for digest in "abac":
        counted.asked(digest, None)
    assert list(counted.snapshot().uses) == ["a", "c"]


def test_a_cache_counts_look_ups_hits_and_loads(world: World) -> None:
    world.placed("a").release()
    world.placed("a").release()
    world.asked("a").release()
    counts = world.cache.counters.snapshot()
    assert (counts.lookups["device"], counts.hits["device"]) == (3, 2)
    assert (counts.lookups["host"], counts.hits["host"]) == (1, 0)
    assert counts.loads == {("disk", "ok"): 1, ("host", "ok"): 1}
    assert counts.loaded_bytes["disk"] == counts.loaded_bytes["host"] > 0
    assert {stage: sum(each.counts) for stage, each in counts.seconds.items()} == {
        "wait": 1,
        "manifest": 1,
        "read": 1,
        "stage": 1,
        "write": 1,
    }
    assert (counts.uses["a"].requests, counts.uses["a"].hits) == (3, 2)


def test_evictions_have_reasons(world: World) -> None:
    """The pool has three pages of q_proj, host memory all that is asked for."""
    for digest in "abcd":
        world.placed(digest).release()
    world.cache.unload("d")
    draining = world.placed("c")
    world.cache.unload("c")
    draining.release()
    world.pool.error = RuntimeError("out of memory")
    failed = world.ready("a")
    world.cache.unload("a")
    assert world.cache.counters.snapshot().evictions == {
        ("device", "room"): 1,
        ("device", "unload"): 2,
        ("host", "unload"): 2,
    }
    assert not world.cache.place(failed)
    assert world.cache.counters.snapshot().evictions["device", "failure"] == 1
    assert world.cache.counters.snapshot().loads["host", "failed"] == 1


def test_host_memory_evicts_for_room(world: World) -> None:
    world.cache.close()
    world.open(host_bytes=100)
    for digest in "ab":
        world.placed(digest).release()
    assert world.cache.counters.snapshot().evictions == {("host", "room"): 1}
    memory = world.cache.memory()
    assert (memory.host_bytes, memory.host_budget) == (64, 100)


def test_what_fails_or_is_given_up_is_counted(world: World) -> None:
    world.source.broken["a"] = OSError("gone")
    for _ in range(3):
        world.asked("a").wait(TIMEOUT)
    go = [world.source.stall(digest) for digest in "bc"]
    running = [world.asked(digest) for digest in "bc"]
    world.asked("d").release()
    for event in go:
        event.set()
    for lease in running:
        lease.wait(TIMEOUT)
    counts = world.cache.counters.snapshot()
    assert counts.loads == {
        ("disk", "failed"): 1,
        ("disk", "refused"): 2,
        ("disk", "cancelled"): 1,
        ("disk", "ok"): 2,
    }
    assert sum(counts.seconds["wait"].counts) == 3


def test_pages_have_one_state_each(world: World) -> None:
    world.cache.pin("A", True)
    world.placed("a").release()
    world.placed("b").release()
    world.placed("c")
    assert world.cache.memory().pages == {
        "q_proj": {"free": 0, "used": 1, "pinned": 1, "idle": 1},
        "v_proj": {"free": 2},
    }
