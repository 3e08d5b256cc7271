import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_jax.adapters.forecast import Forecast
from openlora_jax.adapters.host_cache import HostAdapter, HostCache


def adapter(nbytes: int) -> HostAdapter:
    return HostAdapter({"q_proj": 1}, {"q_proj.A": [np.zeros(nbytes, np.int8)]})


def filled(*digests: str, held: str = "") -> HostCache:
    cache = HostCache(30)
    for digest in digests:
        cache.put(digest, adapter(10), held=digest in held)
    return cache


def test_of_equals_the_least_recently_used_leaves_when_bytes_run_out() -> None:
    cache = filled("a", "b", "c")
    cache.get("a")
    cache.put("d", adapter(10), held=False)
    assert set(cache.digests()) == {"a", "c", "d"}
    assert cache.nbytes == 30


def test_a_held_adapter_stays_even_over_the_budget() -> None:
    cache = filled("a", "b", "c", "d", held="abcd")
    assert cache.nbytes == cache.held_bytes == 40
    assert not cache.has_room
    cache.unhold("b")
    assert set(cache.digests()) == {"a", "c", "d"}
    assert not cache.has_room


def test_what_is_larger_than_the_budget_does_not_stay() -> None:
    cache = filled("a")
    cache.put("huge", adapter(31), held=False)
    assert cache.get("huge") is None
    assert cache.nbytes == cache.size("a") + cache.size("huge")


@pytest.mark.parametrize("held", ["", "a"])
def test_drop_and_put_again_keep_the_count(held: str) -> None:
    cache = filled("a", "a", held=held)
    assert cache.nbytes == 10
    cache.drop("a")
    cache.drop("a")
    assert (cache.nbytes, cache.held_bytes) == (0, 0)
    assert not cache.held("a")


def test_who_is_cheap_to_read_again_leaves_first() -> None:
    cache = HostCache(30)
    for digest, seconds in (("dear", 1.0), ("cheap", 0.1), ("last", 0.5)):
        cache.put(digest, HostAdapter({}, adapter(10).pages, seconds), held=False)
    cache.put("new", HostAdapter({}, adapter(10).pages, 2.0), held=False)
    assert set(cache.digests()) == {"dear", "last", "new"}


def test_who_left_could_return_when_there_is_room() -> None:
    cache = filled("a", "b", "c", "d")
    cache.drop("b")
    assert list(cache.could_return()) == ["a"]
    assert cache.offer("a", adapter(10))
    assert (list(cache.could_return()), cache.nbytes) == ([], 30)


def test_of_those_who_were_here_before_a_start_none_is_tried_once_one_was_too_large() -> None:
    cache = HostCache(30)
    cache.seed(str(number) for number in range(2000))
    assert list(cache.could_return()) == [str(number) for number in range(1024)]
    for size, taken, left in ((10, True, 1023), (21, False, 0)):
        digest = next(iter(cache.could_return()))
        cache.forget(digest)
        assert cache.offer(digest, adapter(size)) == taken
        assert len(list(cache.could_return())) == left
    assert set(cache.digests()) == {"0"}


class LeastRecentlyUsed:
    """What the host tier would be without values."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sizes: dict[str, int] = {}

    def hit(self, digest: str, size: int) -> bool:
        found = self.sizes.pop(digest, None)
        self.sizes[digest] = size
        while sum(self.sizes.values()) > self.budget:
            del self.sizes[next(iter(self.sizes))]
        return found is not None


def test_popular_adapters_of_many_sizes_are_read_less_often_than_by_recency() -> None:
    """10,000 requests for 400 adapters, Zipf 1.0, 1 to 8 pages; a load takes 10 ms and 4 a page. Room for a tenth."""
    rng = np.random.default_rng(0)
    sizes = {str(digest): int(rng.choice([1, 2, 4, 8])) for digest in range(400)}
    weights = 1 / np.arange(1, len(sizes) + 1)
    trace = [str(digest) for digest in rng.choice(len(sizes), 10_000, p=weights / weights.sum())]
    budget = sum(sizes.values()) // 10
    forecast, now = Forecast(), 0.0
    valued, recent = HostCache(budget, frequency=lambda digest: forecast.count(digest, now)), LeastRecentlyUsed(budget)
    misses, seconds = {"valued": 0, "recent": 0}, {"valued": 0.0, "recent": 0.0}
    for now, digest in zip(map(float, range(len(trace))), trace, strict=True):
        load = 0.010 + 0.004 * sizes[digest]
        forecast.asked(digest, now)
        hits = {"valued": valued.get(digest) is not None, "recent": recent.hit(digest, sizes[digest])}
        if not hits["valued"]:
            valued.put(digest, HostAdapter({}, adapter(sizes[digest]).pages, load), held=False)
        assert valued.nbytes <= budget
        for name in (name for name, hit in hits.items() if not hit):
            misses[name] += 1
            seconds[name] += load
    assert misses["valued"] < 0.85 * misses["recent"]
    assert seconds["valued"] < 0.87 * seconds["recent"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["get", "put", "hold", "unhold", "drop"]))))
def test_whatever_happens_the_budget_and_the_counts_hold(steps: list[tuple[str, str]]) -> None:
    cache, held = HostCache(40), set[str]()
    for digest, step in steps:
        here = digest in cache.digests()
        match step:
            case "get":
                assert (cache.get(digest) is not None) == here
            case "put":
                cache.put(digest, adapter(1 + 7 * "abcdef".index(digest)), held=digest in held)
            case "hold" if here:
                cache.hold(digest)
                held.add(digest)
            case "unhold":
                cache.unhold(digest)
                held.discard(digest)
            case "drop":
                cache.drop(digest)
                held.discard(digest)
        assert cache.nbytes == sum(map(cache.size, cache.digests()))
        assert cache.held_bytes == sum(map(cache.size, held))
        assert {each for each in cache.digests() if cache.held(each)} == held <= set(cache.digests())
        assert cache.nbytes <= cache.budget or set(cache.digests()) == held
