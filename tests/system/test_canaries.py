"""64 adapters on the pages of 4, while they are loaded, unloaded, replaced and cancelled: each answers for itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_jax import LLM
from openlora_jax.adapters.store import AdapterStore
from tests.system.canaries import Answers, Churn, answers_alone
from tests.system.models import install
from tests.system.poisoned import poisoned

CANARIES = [f"canary-{index}" for index in range(64)]
RANKS = (8, 20, 40)
CLIENTS = 12


@pytest.fixture(scope="module")
def canaries(store: Path, base: Path) -> Iterator[AdapterStore]:
    """Of one to three pages each: the device has room for about 4, host memory for about 10."""
    for index, rank in enumerate(RANKS):
        install(store, base, CANARIES[index :: len(RANKS)], first_seed=6000 + 100 * index, rank=rank)
    adapters = AdapterStore(store)
    yield adapters
    for name in CANARIES:
        adapters.remove(name)


@pytest.fixture(scope="module")
def answers(llm: LLM, canaries: AdapterStore) -> Answers:
    return answers_alone(llm, CANARIES)


@pytest.mark.parametrize("responses", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_none_is_answered_by_another(
    llm: LLM, canaries: AdapterStore, answers: Answers, responses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    churn = Churn(llm, canaries, CANARIES, answers, responses)
    before = llm.adapters.counters.snapshot()
    with poisoned(llm, monkeypatch) as poison:
        churn.run(CLIENTS, seed=responses)
    counts = llm.adapters.counters.snapshot()
    assert poison.steps > responses / 8
    assert churn.done.keys() == {"ask", "cancel", "replace", "unload", "load"}
    assert counts.evictions["device", "room"] - before.evictions["device", "room"] > responses / 4
    assert counts.loads["disk", "ok"] - before.loads["disk", "ok"] > responses / 4
    llm.adapters.validate()
    assert {status.requests for status in llm.adapters.status()} <= {0}
