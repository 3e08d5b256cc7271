"""Residency and pages against a small model: who may hold pages, and that none is lost or given twice."""

import pytest

from openlora_jax.adapters.residency import Residence, Residency
from tests.openlora_jax.adapters.cases import BROKEN, CAPACITIES, COUNTS

WAY_OUT = "raise pool_pages, or leave it out and start again, which plans for the local store"


def resident(residency: Residency, digest: str, *, refs: int = 0, waiters: int = 0) -> Residence:
    """Acquires, places and releases until the adapter has just these leases."""
    residence = residency.acquire(digest)
    residence.counts = COUNTS[digest]
    assert residency.place([residence]) is not None
    for _ in range(refs - 1):
        residency.acquire(digest)
        assert residency.place([residence]) == []
    for _ in range(waiters):
        residency.acquire(digest)
    if refs == 0:
        residency.release(residence, placed=True)
    return residence


def wanting(residency: Residency, digest: str) -> Residence:
    residence = residency.acquire(digest)
    residence.counts = COUNTS[digest]
    return residence


def test_the_states_of_one_adapter() -> None:
    residency = Residency(CAPACITIES)
    residence = wanting(residency, "a")
    seen = [residence.state]
    residency.place([residence])
    seen.append(residence.state)
    residency.unload("a")
    seen.append(residence.state)
    assert residency.acquire("a") is residence
    seen.append(residence.state)
    assert seen == ["loading", "resident", "draining", "resident"]
    residency.release(residence, placed=False)
    residency.unload("a")
    assert residency.release(residence, placed=True)
    assert residency.get("a") is None


def test_displaced_pages_stay_until_room_is_needed() -> None:
    residency = Residency(CAPACITIES)
    first, second = resident(residency, "d", refs=2), wanting(residency, "e")
    assert residency.place([second]) is None
    assert not residency.fits([second], [first])
    assert residency.fits([second], [first, first])
    residency.displace([first, first])
    assert (first.refs, first.waiters, first.state) == (0, 2, "resident")
    residency.validate()
    assert residency.place([second]) == [first]
    assert first.state == "loading"
    residency.validate()
    assert not residency.fits([first], [])


def test_an_idle_adapter_stays_until_room_is_needed() -> None:
    residency = Residency(CAPACITIES)
    a = resident(residency, "a")
    assert a.state == "resident"
    residency.place([wanting(residency, "b")])
    assert a.pages
    assert residency.place([wanting(residency, "c")]) == [a]


def test_the_least_recently_used_leaves_first() -> None:
    residency = Residency({"q_proj": 5})
    a, b = resident(residency, "b"), residency.acquire("x")
    b.counts = {"q_proj": 2}
    residency.place([b])
    residency.release(b, placed=True)
    residency.release(residency.acquire("b"), placed=False)  # used again
    newcomer = residency.acquire("y")
    newcomer.counts = {"q_proj": 2}
    assert residency.place([newcomer]) == [b]
    assert a.pages


def test_what_would_not_help_is_spared() -> None:
    residency = Residency(CAPACITIES)
    v_only, q_only = resident(residency, "c"), resident(residency, "b")
    assert residency.place([wanting(residency, "e")]) == [q_only]
    assert v_only.pages


def test_the_members_of_a_mix_do_not_evict_each_other() -> None:
    residency = Residency({"q_proj": 7})
    b = resident(residency, "b", waiters=1)
    assert residency.place([b, wanting(residency, "e")]) is None
    assert b.pages
    residency.validate()


def test_no_more_leave_than_needed() -> None:
    residency = Residency({"q_proj": 6})
    sizes = {"small": 1, "large": 4}
    for digest, size in sizes.items():
        residence = residency.acquire(digest)
        residence.counts = {"q_proj": size}
        residency.place([residence])
        residency.release(residence, placed=True)
    newcomer = residency.acquire("new")
    newcomer.counts = {"q_proj": 4}
    assert [victim.digest for victim in residency.place([newcomer]) or ()] == ["large"]


def test_nobody_leaves_for_one_that_finds_no_room_even_so() -> None:
    residency = Residency(CAPACITIES)
    idle = resident(residency, "b")
    resident(residency, "c", refs=1)
    assert residency.place([wanting(residency, "d")]) is None
    assert idle.pages
    residency.validate()


def test_one_that_others_wait_for_leaves_last_and_is_loading_again() -> None:
    residency = Residency({"q_proj": 5})
    awaited = residency.acquire("awaited")
    awaited.counts = {"q_proj": 2}
    residency.place([awaited])
    residency.release(awaited, placed=True)
    residency.acquire("awaited")
    idle = residency.acquire("idle")
    idle.counts = {"q_proj": 2}
    residency.place([idle])
    residency.release(idle, placed=True)
    newcomers = [residency.acquire(digest) for digest in ("n1", "n2")]
    for newcomer in newcomers:
        newcomer.counts = {"q_proj": 2}
    assert residency.place(newcomers[:1]) == [idle]
    assert residency.place(newcomers[1:]) == [awaited]
    assert awaited.state == "loading"
    assert residency.get("awaited") is awaited


def test_what_others_wait_for_has_its_time_unless_it_is_urgent() -> None:
    residency = Residency({"q_proj": 6}, min_residency=2.0)
    awaited, newcomer = wanting(residency, "b"), wanting(residency, "e")
    assert residency.place([awaited], 10.0, urgent=False) == []
    residency.release(awaited, placed=True)
    residency.acquire("b")
    assert residency.place([newcomer], 11.9, urgent=False) is None
    assert residency.fits([newcomer], [])
    assert residency.place([awaited], 11.9, urgent=False) == []
    residency.release(awaited, placed=True)
    residency.acquire("b")
    assert residency.place([newcomer], 12.0, urgent=False) == [awaited]
    residency.release(newcomer, placed=True)
    assert residency.place([awaited], 12.1, urgent=False) == [newcomer], "nobody waits for it"
    residency.displace([awaited])
    residency.acquire("e")
    assert residency.place([wanting(residency, "e")], 12.2) == [awaited], "urgent"


def test_a_pinned_adapter_stays() -> None:
    residency = Residency(CAPACITIES)
    residency.pinned = frozenset("b")
    pinned = resident(residency, "b")
    assert residency.place([wanting(residency, "e")]) is None
    residency.pinned = frozenset()
    assert residency.place([wanting(residency, "e")]) == [pinned]


def test_a_mix_that_can_never_fit_is_told_so_with_both_numbers() -> None:
    residency = Residency(CAPACITIES)
    b, d = wanting(residency, "b"), wanting(residency, "d")
    assert residency.misfit([b, b]) is None
    assert residency.misfit([d]) is None
    assert residency.misfit([b, d]) == "it needs 6 pages of q_proj and the pool can give 5; raise pool_pages"
    residency.pinned = frozenset("a")
    resident(residency, "a")
    assert residency.misfit([d]) is None
    assert residency.misfit([wanting(residency, "e")]) == (
        f"it needs 5 pages of q_proj and the pool can give 4; {WAY_OUT}"
    )


def test_one_adapter_twice_in_a_mix_takes_its_pages_once() -> None:
    residency = Residency({"q_proj": 3})
    residency.acquire("b")
    twice = wanting(residency, "b")
    assert residency.place([twice, twice]) == []
    assert (twice.refs, twice.waiters) == (2, 0)


@pytest.mark.parametrize("breakage", ["leak", "two owners", "double release"])
def test_validate_sees_what_is_broken(breakage: str) -> None:
    residency = Residency(CAPACITIES)
    a, b = resident(residency, "a", refs=1), resident(residency, "b", refs=1)
    if breakage == "leak":
        a.pages = {}
    elif breakage == "two owners":
        a.pages = b.pages
    else:
        residency.release(b, placed=True)
        residency.release(b, placed=True)
    with pytest.raises(RuntimeError):
        residency.validate()


def test_what_was_not_loaded_gets_no_pages() -> None:
    residency = Residency(CAPACITIES)
    with pytest.raises(RuntimeError, match=r"before they were loaded: \['a'\]"):
        residency.place([residency.acquire("a")])
    residency.validate()


def test_what_is_in_use_does_not_fail() -> None:
    residency = Residency(CAPACITIES)
    residence = resident(residency, "a", refs=1, waiters=1)
    with pytest.raises(RuntimeError, match="who use it"):
        residency.fail(residence, BROKEN)
    residency.validate()
    assert residence.failure is None
