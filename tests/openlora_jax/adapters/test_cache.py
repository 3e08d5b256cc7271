"""From disk to device: one request, several that share, mixes, and who must make room."""

import pytest

from openlora_jax.adapters.quarantine import FIRST_WAIT
from openlora_jax.errors import AdapterOutOfMemory
from tests.openlora_jax.adapters.fakes import TIMEOUT, World


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


def test_a_mix_larger_than_the_pool_fails_alone(world: World) -> None:
    mix = [world.ready("wide"), world.ready("a")]
    assert not world.cache.place(*mix)
    assert "needs 4 pages of q_proj and the pool can give 3" in str(mix[0].error)
    assert world.cache.place(world.ready("wide"))


def test_a_failed_write_fails_its_request_and_gives_the_pages_back(world: World) -> None:
    mix = [world.ready("wide")]
    world.pool.error = RuntimeError("RESOURCE_EXHAUSTED")
    assert not world.cache.place(*mix)
    assert "RESOURCE_EXHAUSTED" in str(mix[0].error)
    assert isinstance(mix[0].error, AdapterOutOfMemory)
    mix[0].release()
    world.pool.error = None
    world.cache.validate()
    assert "RESOURCE_EXHAUSTED" in str(world.asked("wide").error)
    world.now += FIRST_WAIT
    assert world.cache.place(world.ready("wide"))


def test_a_failed_write_that_took_the_pool_with_it_blames_no_other_adapter(world: World) -> None:
    world.placed("b").release()
    waiting, mix = world.ready("b"), [world.ready("a"), world.ready("c")]
    world.pool.error, world.pool.lost = RuntimeError("RESOURCE_EXHAUSTED"), True
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        world.cache.place(*mix)
    world.pool.error, world.pool.lost = None, False
    world.pool.contents.clear()
    world.cache.reset()
    assert [lease.error is None for lease in mix] == [False, True]
    world.cache.validate()
    assert [world.cache.place(lease) for lease in (waiting, mix[1])] == [True, True]
    assert [world.owner(lease) for lease in (waiting, mix[1])] == [{2.0}, {3.0}]


@pytest.mark.parametrize("host_bytes", [1, 1 << 20], ids=["from disk", "from host memory"])
def test_what_the_device_lost_is_brought_back_for_those_who_wait(world: World, host_bytes: int) -> None:
    world.open(host_bytes=host_bytes)
    world.cache.pin("C", True)
    lost = [world.placed(digest) for digest in "abc"]
    again = world.ready("b")
    with pytest.raises(RuntimeError, match="lost under those who use them"):
        world.cache.reset()
    world.cache.displace(lost[0])
    for lease in lost[1:]:
        lease.release()
    world.cache.reset()
    world.pool.contents.clear()
    world.cache.validate()
    assert not sum(by_state["used"] + by_state["pinned"] for by_state in world.cache.memory().pages.values())
    for lease in (lost[0], again):
        assert lease.wait(TIMEOUT)
        assert world.cache.place(lease)
    assert [world.owner(lease) for lease in (lost[0], again, world.placed("c"))] == [{1.0}, {2.0}, {3.0}]
    assert len(world.source.reads) == (6 if host_bytes == 1 else 3)
