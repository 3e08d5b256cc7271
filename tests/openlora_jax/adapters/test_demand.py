"""How the pool is divided between modules: within its room, with place for every registered adapter alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax.adapters.demand import (
    LINEAR,
    NONE,
    SPARE_PAGES,
    UNKNOWN,
    Demand,
    Kind,
    divide,
    least_pages,
    pool_bytes,
    steady,
)
from openlora_jax.adapters.modules import INT4, MODULES, VECTORS
from openlora_jax.adapters.registry import Registration
from openlora_jax.adapters.residency import Residence, Residency
from openlora_jax.errors import BadCheckpoint

WIDE = ("embed_tokens", "lm_head")
EVEN = dict.fromkeys(MODULES, 1000)
QV: Kind = (("q_proj", 1), ("v_proj", 1))
HEAD: Kind = (("lm_head", 3),)


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    modules = draw(st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
    return tuple((module, draw(st.integers(1, 16))) for module in MODULES if module in modules)


registered = st.dictionaries(kinds(), st.integers(1, 1000), max_size=6)
page_sizes = st.fixed_dictionaries({module: st.integers(1, 10_000) for module in MODULES})
rooms = st.integers(0, 2_000_000)
fixed_counts = st.dictionaries(st.sampled_from(MODULES), st.integers(1, 40), max_size=3)


@settings(deadline=None)
@given(registered=registered, sizes=page_sizes, fixed=fixed_counts, room=rooms)
def test_it_stays_within_its_room_and_every_adapter_fits_alone(
    registered: dict[Kind, int], sizes: dict[str, int], fixed: dict[str, int], room: int
) -> None:
    demand = Demand(registered)
    pages = divide(demand, sizes, fixed, room)
    assert pages.keys() == sizes.keys()
    assert min(pages.values()) >= 1
    assert pages | fixed == pages
    zero = pool_bytes({module: fixed.get(module, 1) for module in MODULES}, sizes)
    assert pool_bytes(pages, sizes) <= max(room, zero)
    all_fit = {
        module: fixed.get(module, 1 + max((dict(kind).get(module, 0) for kind in demand.kinds), default=0))
        for module in MODULES
    }
    if pool_bytes(all_fit, sizes) <= room:
        for kind in demand.kinds:
            assert all(count < pages[module] for module, count in kind if module not in fixed)


@settings(deadline=None)
@given(registered=registered, sizes=page_sizes, room=rooms, more=st.integers(0, 100_000))
def test_more_room_never_takes_an_adapters_place(
    registered: dict[Kind, int], sizes: dict[str, int], room: int, more: int
) -> None:
    demand = Demand(registered)
    before, after = least_pages(demand, sizes, {}, room), least_pages(demand, sizes, {}, room + more)
    assert all(after[module] >= count for module, count in before.items())


def test_what_is_asked_for_gets_the_room() -> None:
    pages = divide(Demand({QV: 100}), EVEN, {}, 300_000)
    assert {module: pages[module] for module in WIDE} == {"embed_tokens": 1, "lm_head": 1}
    assert {pages[module] for module in LINEAR if module not in dict(QV)} == {1 + SPARE_PAGES}
    assert pages["q_proj"] == pages["v_proj"] > 90


def test_saved_modules_have_no_more_pages_than_the_registered_adapters_have() -> None:
    """However often one is asked for: a page is as large as a base matrix, and only its own adapter can use it."""
    plain, head, embedding = {"q_proj": 1}, {"q_proj": 1, "lm_head.saved": 1}, {"embed_tokens.saved": 1}
    facts = {"plain": Facts(plain), "a": Facts(head), "b": Facts(head | {"v_proj": 1}), "c": Facts(embedding)}
    sizes = EVEN | {"lm_head.saved": 20_000, "embed_tokens.saved": 20_000}
    for names, pages in (({"a"}, (1, 0)), ({"a", "plain"}, (1, 0)), ({"a", "b", "c", "plain"}, (2, 1))):
        demand = Demand.of(Store(facts, {name: name for name in names}), "base", {"a": 1000, "c": 5})
        found = divide(demand.placed({}), sizes, {}, 1_000_000)
        assert (found["lm_head.saved"], found["embed_tokens.saved"]) == pages
        assert found["q_proj"] > 500, "it has what they leave"


def test_what_few_have_in_pools_of_their_own_finds_room_for_a_mix() -> None:
    two: Kind = (("q_proj.int4", 1), ("v_proj.int4", 1), ("k_proj.vector", 1))
    sizes = EVEN | dict.fromkeys(INT4, 140) | dict.fromkeys(VECTORS, 60)
    pages = divide(Demand({QV: 1000, two: 2}), sizes, {}, 1_000_000)
    residency = Residency(pages)
    assert residency.misfit([Residence(name, dict(two)) for name in ("a", "b")]) is None
    assert {pages[pool] for pool in INT4} == {1 + SPARE_PAGES}
    assert {pages[pool] for pool in VECTORS} == {1 + 8}
    assert divide(Demand({QV: 1000}), EVEN, {}, 1_000_000).keys() == set(MODULES)


def test_observed_requests_weigh() -> None:
    both = {QV: 1, HEAD: 1}
    alike, headed = divide(Demand(both), EVEN, {}, 500_000), divide(Demand(both | {HEAD: 9}), EVEN, {}, 500_000)
    assert headed["lm_head"] > alike["lm_head"] > 4
    assert 1 + SPARE_PAGES <= headed["q_proj"] < alike["q_proj"]


def test_the_largest_adapters_are_left_out_where_they_do_not_fit() -> None:
    huge: Kind = (("q_proj", 16),)
    pages = divide(Demand({QV: 1, huge: 1}), EVEN, {}, 14_000)
    assert pages["v_proj"] == 2
    assert pages["q_proj"] < 17
    pages = divide(Demand({QV: 1, huge: 1}), EVEN, {}, 26_000)
    assert (pages["v_proj"], pages["q_proj"]) >= (2, 17)


def test_with_nothing_registered_all_linear_modules_are_alike() -> None:
    pages = divide(UNKNOWN, EVEN, {}, 9_000 + 7 * 32_000)
    assert pages == dict.fromkeys(LINEAR, 33) | dict.fromkeys(WIDE, 1)
    assert divide(NONE, EVEN, {}, 1 << 40) == dict.fromkeys(MODULES, 1)


def test_small_changes_do_not_change_the_division() -> None:
    pages = [divide(Demand({QV: 100, HEAD: count}), EVEN, {}, 1_000_000)["q_proj"] for count in range(3, 7)]
    assert len(set(pages)) <= 2


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (31, 31), (32, 32), (33, 32), (47, 46), (513, 512), (1000, 992)])
def test_steady(count: int, kept: int) -> None:
    assert steady(count) == kept


def test_how_many_fit() -> None:
    demand = Demand({QV: 3, (("q_proj", 2),): 1})
    assert demand.pages == {"q_proj": 5, "v_proj": 3}
    assert demand.fit({"q_proj": 51, "v_proj": 100}) == 40
    assert NONE.fit({}) == 0


@dataclass(frozen=True)
class Facts:
    pages: Mapping[str, int]
    base_digest: str = "base"


@dataclass
class Store:
    facts: dict[str, Facts]
    names: dict[str, str] = field(default_factory=dict)

    def registrations(self) -> Mapping[str, Registration]:
        return {name: Registration(digest, "") for name, digest in self.names.items()}

    def manifest(self, digest: str) -> Facts:
        if digest not in self.facts:
            raise BadCheckpoint(digest, "is damaged")
        return self.facts[digest]


def test_what_is_registered_counts_once_and_once_for_each_request() -> None:
    facts = {
        "a": Facts({"q_proj": 1}),
        "b": Facts({"q_proj": 1}),
        "c": Facts({"v_proj": 2}),
        "other": Facts({"lm_head": 9}, "other"),
    }
    names = {"one": "a", "same": "a", "two": "b", "three": "c", "foreign": "other", "broken": "gone"}
    demand = Demand.of(Store(facts, names), "base", {"b": 5, "unknown": 7})
    assert demand.kinds == {(("q_proj", 1),): 7, (("v_proj", 2),): 1}
    assert Demand.of(Store({}), "base", {}) is UNKNOWN
