import numpy as np
import pytest

from openlora_jax.adapters.host_cache import HostAdapter, HostCache


def adapter(nbytes: int) -> HostAdapter:
    return HostAdapter({"q_proj": 1}, {"q_proj.A": [np.zeros(nbytes, np.int8)]})


def filled(*digests: str, held: str = "") -> HostCache:
    cache = HostCache(30)
    for digest in digests:
        cache.put(digest, adapter(10), held=digest in held)
    return cache


def test_the_least_recently_used_leaves_when_bytes_run_out() -> None:
    cache = filled("a", "b", "c")
    cache.get("a")
    cache.put("d", adapter(15), held=False)
    assert set(cache.digests()) == {"a", "d"}
    assert cache.nbytes == 25


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
