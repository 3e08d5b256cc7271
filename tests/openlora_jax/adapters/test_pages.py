import pytest

from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.pages import ZERO_PAGE, PageAllocator, pool_capacities, shortage
from openlora_jax.config import EngineConfig


def test_capacities_follow_the_configuration() -> None:
    capacities = pool_capacities(EngineConfig(pool_pages=9, wide_pool_pages=3))
    assert tuple(capacities) == MODULES
    assert capacities["down_proj"] == 9
    assert capacities["embed_tokens"] == capacities["lm_head"] == 3


def test_every_page_but_the_zero_page_is_given_away_once() -> None:
    allocator = PageAllocator({"q_proj": 5})
    pages = [allocator.allocate({"q_proj": 2}) for _ in range(2)]
    given = [page for some in pages if some for page in some["q_proj"]]
    assert sorted(given) == [1, 2, 3, 4]
    assert ZERO_PAGE not in given


def test_of_saved_modules_every_page_is_given_away() -> None:
    allocator = PageAllocator({"lm_head.saved": 2})
    pages = allocator.allocate({"lm_head.saved": 2})
    assert pages is not None
    assert sorted(pages["lm_head.saved"]) == [0, 1]
    allocator.release(pages)
    allocator.validate()


def test_allocation_is_all_or_nothing_over_modules() -> None:
    allocator = PageAllocator({"q_proj": 5, "v_proj": 2})
    assert allocator.allocate({"q_proj": 1, "v_proj": 2}) is None
    assert (allocator.num_free("q_proj"), allocator.num_free("v_proj")) == (4, 1)
    assert allocator.allocate({"q_proj": 4, "v_proj": 1}) is not None


def test_released_pages_can_be_given_away_again() -> None:
    allocator = PageAllocator({"q_proj": 3})
    pages = allocator.allocate({"q_proj": 2})
    assert pages is not None
    allocator.release(pages)
    allocator.validate()
    assert allocator.allocate({"q_proj": 2}) is not None


@pytest.mark.parametrize(
    ("pool", "key"),
    [("q_proj.vector", "vector_pages"), ("lm_head.saved", "saved_pages"), ("lm_head", "wide_pool_pages")],
)
def test_a_pool_that_does_not_exist_has_no_room(pool: str, key: str) -> None:
    reason = shortage({"q_proj": 1, pool: 1}, {"q_proj": 3})
    assert reason
    assert reason.startswith(f"it needs 1 pages of {pool} and the pool can give 0; raise {key}, or leave it")
