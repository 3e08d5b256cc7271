"""The memory plan: what the default counts take, what a budget is divided into, and what was observed changes."""

from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax import memory
from openlora_jax.adapters.demand import NONE, UNKNOWN, Demand, Kind
from openlora_jax.adapters.modules import MODULES, VECTORS
from openlora_jax.bench.models import SMOLLM2_135M
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from openlora_jax.memory import MemoryPlan, device_memory, memory_budget
from openlora_jax.observed import Observed, Planned
from pallas_kernels.registry import LIKE, PLATFORMS, TABLE
from pallas_kernels.triton_limits import WRAPPED
from tests.openlora_jax.adapters.test_demand import registered
from tests.openlora_jax.tiny import MODEL, SETTINGS

BASE = "f" * 64
BUDGET = 40_000_000
SMALL = EngineConfig(max_rows=4, prefill_chunk=32, kv_block=16, max_model_len=128)
TODAY = EngineConfig.of(
    SMALL.model_dump(include=SMALL.model_fields_set) | {"kv_blocks": 513, "pool_pages": 33, "wide_pool_pages": 5}
)


def observed(**facts: Any) -> Observed:
    return Observed(base_digest=BASE, **facts)


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_each_part(dtype: str, itemsize: int) -> None:
    """Worked out by hand from the tiny model: 2 layers of width 32, 2 KV heads of 8, MLP 48, 300 tokens, head tied."""
    settings = {**SETTINGS, "pool_pages": 3, "wide_pool_pages": 2, "dtype": dtype}
    plan = MemoryPlan.of(EngineConfig.of(settings), MODEL)
    layer = 32 + (32 + 16 + 16) * 32 + 32 * 32 + 32 + 2 * 48 * 32 + 32 * 48
    assert plan.weights == itemsize * (300 * 32 + 2 * layer + 32)
    assert plan.kv == itemsize * 65 * 16 * 2 * 2 * 16
    assert plan.pools["q_proj"] == itemsize * 3 * 2 * 16 * (32 + 32)
    assert plan.pools["k_proj"] == itemsize * 3 * 2 * 16 * (32 + 16)
    assert plan.pools["lm_head"] == itemsize * 2 * 16 * (32 + 300)
    assert plan.sampler == 5 * 300 * 9
    assert plan.held == plan.weights + plan.kv + sum(plan.pools.values()) + plan.sampler
    assert plan.total == plan.held + plan.activations
    plan.check(plan.total)
    assert str(plan).startswith(f"{plan.total / 1e6:,.0f} MB (")
    assert "adapter pages, 3 of q_proj, k_proj" in str(plan)
    with pytest.raises(InvalidConfig, match="lower kv_blocks or pool_pages"):
        plan.check(plan.total - 1)


def test_keys_and_values_in_int8_are_counted_with_their_scales() -> None:
    few = MemoryPlan.of(EngineConfig.of({**SETTINGS, "kv_dtype": "int8"}), MODEL)
    assert few.kv == 65 * 16 * 2 * 2 * 2 * (8 + 4)
    assert "65 KV blocks of 16 tokens in int8" in str(few)
    for dtype, more in (("float32", 3.75), ("bfloat16", 1.88)):
        sizes = [
            MemoryPlan.of(EngineConfig.of({"dtype": dtype, **kv}), SMOLLM2_135M).kv for kv in ({"kv_dtype": "int8"}, {})
        ]
        assert sizes[1] / sizes[0] == pytest.approx(more, abs=0.02)


def few_bits(backend: str, **counts: int) -> EngineConfig:
    return EngineConfig.of({"backend": backend, "kv_dtype": "int8", "max_rows": 1, **counts})


@pytest.mark.parametrize(("gigabytes", "blocks"), [(12, 6657), (24, 11650), (36, 11650), (60, 34817)])
def test_no_cache_of_codes_is_of_a_size_that_gpus_address_wrongly(gigabytes: int, blocks: int) -> None:
    """Keys of 2 to 4 GiB: see `WRAPPED`. Pages get what is left."""
    plan = MemoryPlan.of(few_bits("cuda"), SMOLLM2_135M, budget=gigabytes * 10**9)
    assert plan.kv_blocks == blocks
    assert blocks * 32 * 30 * 3 * 64 not in WRAPPED
    assert plan.total > 0.95 * gigabytes * 10**9


@pytest.mark.parametrize("backend", PLATFORMS)
def test_a_set_number_of_blocks_is_refused_where_the_kernel_would_refuse_it(backend: str) -> None:
    settings = few_bits(backend, kv_blocks=12_000)
    by_backend = TABLE["paged_attention"]
    if (by_backend.get(backend) or by_backend[LIKE[backend]]).name == "pallas_triton":
        with pytest.raises(InvalidConfig, match=r"kv_blocks.* 11650 at most, or from 23302 on"):
            MemoryPlan.of(settings, SMOLLM2_135M)
    else:
        assert MemoryPlan.of(settings, SMOLLM2_135M).kv_blocks == 12_000


def test_what_a_cpu_kept_is_planned_again_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, budget = few_bits("auto"), 24 * 10**9
    first = MemoryPlan.of(settings, SMOLLM2_135M, budget=budget)
    assert first.kv_blocks * 32 * 30 * 3 * 64 in WRAPPED
    assert MemoryPlan.of(settings, SMOLLM2_135M, UNKNOWN, kept(first), budget).kv_blocks == first.kv_blocks
    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    assert MemoryPlan.of(settings, SMOLLM2_135M, UNKNOWN, kept(first), budget).kv_blocks == 11650


def test_without_a_budget_the_default_counts_come_out() -> None:
    plan = MemoryPlan.of(EngineConfig(), SMOLLM2_135M)
    assert plan.kv_blocks == 513
    assert {plan.pages[module] for module in MODULES[:7]} == {33}
    assert {plan.pages[module] for module in MODULES[7:]} == {1}, "nobody targets them"


@settings(deadline=None)
@given(registered=registered)
def test_without_a_budget_no_more_is_held_than_the_default_counts_take(registered: dict[Kind, int]) -> None:
    demand = Demand(registered)
    plan = MemoryPlan.of(SMALL, MODEL, demand)
    assert plan.total <= MemoryPlan.of(TODAY, MODEL, demand).total
    assert plan.kv_blocks <= 513
    for kind in demand.kinds:
        assert all(count < plan.pages[module] for module, count in kind)


@settings(deadline=None)
@given(
    registered=registered,
    budget=st.integers(1, 400_000_000),
    facts=st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "kv_tokens": st.integers(0, 100_000),
            "preemptions": st.integers(0, 2),
            "pool_bytes": st.integers(0, 10**8),
            "evictions": st.integers(0, 2),
            "activations": st.none() | st.integers(0, 10**6),
        },
    ),
)
def test_a_budget_is_not_exceeded_or_refused(
    registered: dict[Kind, int], budget: int, facts: dict[str, Any] | None
) -> None:
    demand, seen = Demand(registered), None if facts is None else observed(**facts)
    plan = MemoryPlan.of(SMALL, MODEL, demand, seen, budget)
    if plan.total > budget:
        nothing = MemoryPlan.of(SMALL, MODEL, NONE, seen, budget)
        assert nothing.kv_blocks < 1 + 128 // 16 + 1, "there was no room for one sequence, and nothing else to give"
        with pytest.raises(InvalidConfig):
            plan.check(budget)
        return
    plan.check(budget)
    one_of_each = MemoryPlan.of(EngineConfig.of({**_given(), "wide_pool_pages": 17, "pool_pages": 17}), MODEL, demand)
    if one_of_each.held - one_of_each.kv + plan.activations + 10 * (plan.kv // plan.kv_blocks) <= budget:
        for kind in demand.kinds:
            assert all(count < plan.pages[module] for module, count in kind), "each registered adapter fits alone"


def _given() -> dict[str, Any]:
    return SMALL.model_dump(include=SMALL.model_fields_set)


@pytest.mark.parametrize(
    ("given_counts", "pages", "blocks"),
    [
        ({"pool_pages": 7}, {"q_proj": 7, "lm_head": 1}, None),
        ({"wide_pool_pages": 4}, {"lm_head": 4}, None),
        ({"kv_blocks": 20}, {"lm_head": 1}, 20),
        ({"kv_blocks": 20, "pool_pages": 7, "wide_pool_pages": 4}, {"q_proj": 7, "lm_head": 4}, 20),
    ],
)
@pytest.mark.parametrize("budget", [None, BUDGET])
def test_what_a_configuration_sets_stays(
    given_counts: dict[str, int], pages: dict[str, int], blocks: int | None, budget: int | None
) -> None:
    plan = MemoryPlan.of(EngineConfig.of({**_given(), **given_counts}), MODEL, UNKNOWN, None, budget)
    assert {module: plan.pages[module] for module in pages} == pages
    assert blocks in (None, plan.kv_blocks)


def test_who_was_short_gets_what_the_other_did_not_use() -> None:
    even = MemoryPlan.of(SMALL, MODEL, UNKNOWN, observed(), BUDGET)
    both = MemoryPlan.of(SMALL, MODEL, UNKNOWN, observed(evictions=5, preemptions=5), BUDGET)
    pool = MemoryPlan.of(SMALL, MODEL, UNKNOWN, observed(evictions=5, kv_tokens=100), BUDGET)
    cache = MemoryPlan.of(SMALL, MODEL, UNKNOWN, observed(preemptions=5, pool_bytes=1000), BUDGET)
    assert both == even
    assert pool.pages["q_proj"] > even.pages["q_proj"] > cache.pages["q_proj"]
    assert pool.kv_blocks < even.kv_blocks < cache.kv_blocks
    assert pool.kv >= 0.45 * even.kv
    assert sum(cache.pools.values()) >= 0.45 * sum(even.pools.values()), "no more than half is taken away"


def kept(plan: MemoryPlan, **facts: Any) -> Observed:
    return observed(planned=Planned(basis=plan.basis, pages=plan.pages, kv_blocks=plan.kv_blocks), **facts)


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_who_lacked_nothing_starts_again_with_the_same(budget: int | None) -> None:
    """Whatever is asked for and registered in the meantime, as long as it fits: programs need not be compiled again."""
    first = MemoryPlan.of(SMALL, MODEL, UNKNOWN, observed(), budget)
    asked_for = Demand({(("q_proj", 1), ("v_proj", 2)): 50})
    assert MemoryPlan.of(SMALL, MODEL, asked_for, kept(first), budget) == first
    other = MemoryPlan.of(SMALL, MODEL, asked_for, observed(), budget)
    assert other.pages != first.pages
    assert MemoryPlan.of(SMALL, MODEL, asked_for, kept(first, evictions=1, kv_tokens=10**6), budget) == other
    headed = Demand({(("lm_head", 3),): 1})
    assert MemoryPlan.of(SMALL, MODEL, headed, kept(first), budget).pages["lm_head"] >= 4


def test_other_settings_make_another_plan() -> None:
    first = MemoryPlan.of(EngineConfig.of({**_given(), "pool_pages": 7}), MODEL)
    assert MemoryPlan.of(SMALL, MODEL, UNKNOWN, kept(first)).pages["q_proj"] > 7
    smaller = MemoryPlan.of(SMALL, MODEL, UNKNOWN, None, BUDGET // 2)
    assert MemoryPlan.of(SMALL, MODEL, UNKNOWN, kept(smaller), BUDGET).total > smaller.total


def test_vector_pages_are_planned_where_an_adapter_has_some_or_the_settings_ask() -> None:
    plain, gains = Demand({(("q_proj", 1),): 1}), Demand({(("q_proj", 1), ("q_proj.vector", 1)): 1})
    assert MemoryPlan.of(SMALL, MODEL, plain).pages.keys() == set(MODULES)
    planned = MemoryPlan.of(SMALL, MODEL, gains)
    assert planned.pages.keys() == {*MODULES, *VECTORS}
    assert planned.pages["q_proj.vector"] > 2
    assert planned.pages["up_proj.vector"] == 9
    assert planned.pools["up_proj.vector"] == 9 * 4 * 2 * 2 * 48
    kept = Planned(basis=planned.basis, pages=MemoryPlan.of(SMALL, MODEL, plain).pages, kv_blocks=33)
    assert MemoryPlan.of(SMALL, MODEL, gains, observed(planned=kept)).pages == planned.pages
    asked = EngineConfig.of(SMALL.model_dump(include=SMALL.model_fields_set) | {"vector_pages": 5})
    assert MemoryPlan.of(asked, MODEL, plain).pages["up_proj.vector"] == 5


def test_pages_of_saved_modules_are_planned_where_an_adapter_has_one_or_the_settings_ask() -> None:
    plain, headed = Demand({(("q_proj", 1),): 1}), Demand({(("lm_head.saved", 1), ("q_proj", 1)): 1})
    budget = MemoryPlan.of(SMALL, MODEL, plain).total
    planned = MemoryPlan.of(SMALL, MODEL, headed, None, budget)
    assert planned.pages.keys() == {*MODULES, "lm_head.saved"}
    assert planned.pools["lm_head.saved"] == planned.pages["lm_head.saved"] * 4 * MODEL.vocab_size * MODEL.hidden_size
    assert planned.total <= budget
    kept = Planned(basis=planned.basis, pages=MemoryPlan.of(SMALL, MODEL, plain, None, budget).pages, kv_blocks=33)
    assert MemoryPlan.of(SMALL, MODEL, headed, observed(planned=kept), budget).pages == planned.pages
    asked = EngineConfig.of(SMALL.model_dump(include=SMALL.model_fields_set) | {"saved_pages": 2})
    both, one = MemoryPlan.of(asked, MODEL, plain), MemoryPlan.of(asked, MODEL, headed)
    assert (both.pages["embed_tokens.saved"], both.pages["lm_head.saved"]) == (2, 2)
    assert one.pages["lm_head.saved"] == 2
    assert "embed_tokens.saved" not in one.pages, "no adapter can use one"
    assert one.held <= both.held - both.pools["embed_tokens.saved"], "and nothing else has its room"
    least = planned.total - sum(planned.pools.values()) - planned.kv
    assert "lm_head.saved" not in MemoryPlan.of(SMALL, MODEL, headed, None, least + 90_000).pages


def test_the_copy_of_a_saved_page_that_is_written_is_counted() -> None:
    """As it is stored, which may take twice as much; but not where there is no room for such a page at all."""
    plain, headed = Demand({(("q_proj", 1),): 1}), Demand({(("lm_head.saved", 1), ("q_proj", 1)): 1})
    copy = 2 * 4 * MODEL.vocab_size * MODEL.hidden_size
    seen = observed(activations=1000)
    without = MemoryPlan.of(SMALL, MODEL, plain, seen, 2_000_000)
    planned = MemoryPlan.of(SMALL, MODEL, headed, seen, 2_000_000)
    assert (without.activations, planned.activations) == (1250, copy)
    assert planned.pages["lm_head.saved"] == 1
    assert planned.total <= 2_000_000
    removed = MemoryPlan.of(SMALL, MODEL, plain, kept(planned, activations=1000), 2_000_000)
    assert (removed.pages, removed.activations) == (planned.pages, copy), "the page is there still"
    tight = without.total - without.kv - sum(without.pools.values()) + 150_000
    small = MemoryPlan.of(SMALL, MODEL, headed, seen, tight)
    assert small == MemoryPlan.of(SMALL, MODEL, plain, seen, tight)
    assert small.total <= tight


def test_what_is_too_much_by_now_is_planned_again() -> None:
    first = MemoryPlan.of(SMALL, MODEL, UNKNOWN, None, BUDGET)
    again = MemoryPlan.of(SMALL, MODEL, UNKNOWN, kept(first, activations=10_000_000), BUDGET)
    assert again.total <= BUDGET
    assert again.held < first.held


def test_observed_activations_take_the_place_of_the_estimate() -> None:
    plan = MemoryPlan.of(SMALL, MODEL, UNKNOWN, observed(activations=1000), BUDGET)
    assert plan.activations == 1250


class Gpu:
    platform = "gpu"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": 1_000_000, "peak_bytes_in_use": 900_000}


def test_the_budget_is_what_the_settings_say_or_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given_bytes = EngineConfig.of({"device_memory": "500kB"})
    assert memory_budget(EngineConfig()) is None, "a CPU's memory is not the engine's alone"
    assert memory_budget(given_bytes) == 500_000
    assert memory.observed_activations(MemoryPlan.of(SMALL, MODEL)) is None
    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    assert device_memory() == 1_000_000
    assert memory_budget(EngineConfig()) == 960_000
    assert memory_budget(given_bytes) == 500_000
    assert memory.observed_activations(MemoryPlan.of(SMALL, MODEL)) == 0
    with pytest.raises(InvalidConfig, match="device_memory: 2 MB are more than the 1 MB"):
        memory_budget(EngineConfig.of({"device_memory": 2_000_000}))
