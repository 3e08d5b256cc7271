"""What is read, when, and what happens to those who wait for it."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from openlora_jax.adapters.quarantine import FIRST_WAIT
from openlora_jax.errors import AdapterUnavailable, AdapterUnreachable
from tests.openlora_jax.adapters.fakes import LOAD_TIMEOUT, SIZE, TIMEOUT, Facts, World


def test_an_adapter_larger_than_the_pool_fails_before_it_is_read(world: World) -> None:
    lease = world.ready("huge")
    assert isinstance(lease.error, AdapterUnavailable)
    assert str(lease.error) == (
        "adapter 'HUGE' (huge) cannot be served: it needs 4 pages of q_proj and the pool can give 3;"
        " raise pool_pages, or leave it out and start again, which plans for the local store"
        "; it is tried again in 1 s"
    )
    assert world.source.reads == []


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
        "adapter 'A' (a) cannot be served: the disk is on fire; it is tried again in 1 s",
        "adapter 'alias' (a) cannot be served: the disk is on fire; it is tried again in 1 s",
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
    world.now += FIRST_WAIT
    world.ready("a").release()
    world.now += FIRST_WAIT
    assert "tried again in 1 s" in str(world.asked("a").error)
    world.now += FIRST_WAIT
    del world.source.broken["a"]
    assert world.cache.place(world.ready("a"))
    assert world.source.reads == ["a"] * 3


@pytest.mark.parametrize("way", ["load", "unload"])
def test_an_operator_has_it_tried_at_once(world: World, way: str) -> None:
    world.source.broken["a"] = OSError("flaky")
    world.ready("a").release()
    del world.source.broken["a"]
    if way == "load":
        world.cache.load("A", "a")
    else:
        world.cache.unload("a")
    assert world.cache.place(world.ready("a"))


def test_a_load_that_was_given_up_holds_nothing(world: World) -> None:
    go, given_up = world.source.stall("a"), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(world.cache.load, "A", "a", given_up)
        assert world.source.begun.get(timeout=TIMEOUT) == "a"
        given_up.set()
        with pytest.raises(CancelledError):
            load.result(TIMEOUT)
    assert world.cache.status() == []
    go.set()


def test_a_read_that_hangs_fails_who_waits_and_holds_nobody_else_up(world: World) -> None:
    world.open(threads=1)
    go = world.source.stall("a")
    lease, other = world.asked("a"), world.asked("b")
    assert world.source.begun.get(timeout=TIMEOUT) == "a"
    world.now += LOAD_TIMEOUT
    assert lease.wait(TIMEOUT)
    assert isinstance(lease.error, AdapterUnreachable)
    assert str(lease.error).endswith("its read has not ended within 10 s; it is tried again in 1 s")
    assert not lease.ready
    assert other.wait(TIMEOUT)
    assert other.ready
    lease.release()
    world.now += FIRST_WAIT
    again = world.asked("a")
    assert "has not ended" in str(again.error)
    again.release()
    go.set()
    while world.asked("a").error:
        world.now += FIRST_WAIT
    assert world.source.reads == ["a", "b"]
    assert world.cache.counters.snapshot().loads["disk", "timed_out"] == 1


def test_when_all_threads_hang_who_waits_is_told_in_time(world: World) -> None:
    world.open(threads=1)
    queued = None
    for digest in "ab":
        world.source.stall(digest)
        lease = world.asked(digest)
        assert world.source.begun.get(timeout=TIMEOUT) == digest
        queued = world.asked("c") if digest == "b" else None
        world.now += LOAD_TIMEOUT
        assert not lease.ready
        assert isinstance(lease.error, AdapterUnreachable)
    assert queued
    assert "2 reads of other adapters have not ended in time" in str(queued.error)
    assert "2 reads" in str(world.asked("d").error)
    for digest in "ab":
        world.source.stalled[digest].set()
    while (lease := world.asked("c")).error:
        lease.release()
    assert lease.wait(TIMEOUT)


def test_a_flood_of_digests_that_do_not_exist_leaves_little_behind(world: World) -> None:
    for number in range(1100):
        lease = world.asked(f"nothing-{number}")
        lease.wait(TIMEOUT)
        assert lease.error
        lease.release()
    assert world.states() == {}
    assert len(world.cache._quarantine._failures) <= 1024
    assert not world.cache._waiting
    assert world.cache._loader.idle


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


@pytest.mark.parametrize("left", ["before", "after"])
def test_what_is_unloaded_while_it_is_read_does_not_come_back(world: World, left: str) -> None:
    go = world.source.stall("a")
    lease = world.asked("a")
    assert world.source.begun.get(timeout=TIMEOUT) == "a"
    if left == "before":
        lease.release()
    world.cache.unload("a")
    if left == "after":
        lease.release()
    go.set()
    world.cache.close()
    assert world.states() == {}


def test_who_asks_after_an_unload_gets_what_is_being_read(world: World) -> None:
    go = world.source.stall("a")
    world.asked("a").release()
    world.cache.unload("a")
    late = world.asked("a")
    go.set()
    assert late.wait(TIMEOUT)
    assert world.cache.place(late)
    assert world.source.reads == ["a"]


def test_when_the_system_has_no_thread_to_give_it_is_read_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        lease = world.asked("a")
        assert not lease.ready
        world.cache.validate()
    assert lease.wait(TIMEOUT)
    assert world.cache.place(lease)


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


def test_warming_reads_into_host_memory(world: World) -> None:
    world.cache.load("A", "a")
    assert world.states() == {"a": "host"}
    assert world.asked("a").ready
    with pytest.raises(AdapterUnavailable, match="'HUGE'"):
        world.cache.load("HUGE", "huge")


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
