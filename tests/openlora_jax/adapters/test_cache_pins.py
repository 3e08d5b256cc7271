"""Adapters that are to stay, and adapters that are to leave."""

from tests.openlora_jax.adapters.fakes import TIMEOUT, World


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
