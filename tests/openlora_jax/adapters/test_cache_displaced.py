"""Placed adapters that give their room to others, and get it back."""

from itertools import pairwise

import pytest

from tests.openlora_jax.adapters.fakes import World


def test_who_is_displaced_gives_room_and_is_placed_again(world: World) -> None:
    first, second = world.placed("a"), world.ready("wide")
    assert not world.cache.fits([second], [])
    assert not world.cache.place(second)
    assert world.cache.fits([second], [first])
    world.cache.displace(first)
    with pytest.raises(RuntimeError, match="not placed"):
        _ = first.pages
    seen = [(first.ready, first.resident)]
    assert world.cache.place(second)
    seen.append((first.ready, first.resident))
    assert seen == [(True, True), (True, False)]
    assert not world.cache.place(first)
    second.release()
    assert world.cache.place(first)
    assert world.owner(first) == {1.0}
    first.release()
    world.cache.validate()


def test_displaced_pages_are_kept_until_somebody_needs_them(world: World) -> None:
    lease = world.placed("a")
    world.cache.displace(lease)
    world.pool.error = RuntimeError("a second write")
    assert world.cache.place(lease)
    assert world.owner(lease) == {1.0}


def test_others_that_use_it_keep_it_where_it_is(world: World) -> None:
    first, other, wide = world.placed("a"), world.placed("a"), world.ready("wide")
    assert not world.cache.fits([wide], [first])
    world.cache.displace(first)
    assert not world.cache.place(wide)
    assert world.owner(other) == {1.0}
    assert world.cache.fits([wide], [other])


def test_adapters_that_do_not_fit_together_take_turns_but_not_at_every_request(world: World) -> None:
    """Requests for one and the other wait at all times; each takes a tenth of a second."""
    world.open(min_residency=1.0)
    waiting = {digest: [world.ready(digest), world.ready(digest)] for digest in ("a", "wide")}
    served = ["a"]
    for _ in range(60):
        order = ("wide", "a") if served[-1] == "a" else ("a", "wide")
        digest = next(each for each in order if world.cache.place(waiting[each][0]))
        waiting[digest].append(world.ready(digest))
        waiting[digest].pop(0).release()
        served.append(digest)
        world.now += 0.1
    turns = sum(digest != before for before, digest in pairwise(served))
    assert turns == 6
    assert 20 < served.count("a") < 40


def test_a_displaced_lease_that_is_released_leaves_nothing(world: World) -> None:
    lease = world.placed("a")
    world.cache.displace(lease)
    lease.release()
    world.cache.displace(lease)
    world.cache.validate()
    assert [status.requests for status in world.cache.status()] == [0]
