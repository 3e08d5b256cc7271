"""Mixes of two to eight adapters, in one batch with rows of one adapter and of the base, against transformers."""

import pytest

from openlora_jax.llm import LLM
from tests.parity.cases import MIXES
from tests.parity.conftest import House
from tests.parity.goldens import BOUND, MOVED, Goldens, Row, Scores, adapter_directory, base_directory, max_difference

BASE = base_directory("llama")
MIXED = {name: case.adapters for name, case in MIXES.items() if case.base == "llama"}
ALONE = {name: {name: 1.0} for name in ("rank_1", "rank_17", "rank_64", "head")}
TARGETS: dict[str, dict[str, float] | None] = {**MIXED, "base": None, **ALONE, "base again": None}


@pytest.fixture(scope="module")
def llm(house: House) -> LLM:
    for mix in (*MIXED.values(), *ALONE.values()):
        for name in mix:
            house.install(name, adapter_directory(name), BASE)
    return house.llm(BASE)


def expected(goldens: Goldens, name: str) -> Scores:
    if name in MIXED:
        return goldens.mixes[name]
    return goldens.adapters[name] if name in ALONE else goldens.bases["llama"]


def scored_together(llm: LLM, rows: tuple[Row, ...], targets: list[dict[str, float] | None]) -> list[Scores]:
    """The scores of every row for every target, all submitted at once, row by row; a list for each target."""
    every = [(row, target) for row in rows for target in targets]
    scored = llm.score(
        [row.prompt_ids for row, _ in every], [row.completion_ids for row, _ in every], [target for _, target in every]
    )
    return [[list(each.logprobs) for each in scored[first :: len(targets)]] for first in range(len(targets))]


def test_mixes_of_every_size_in_one_batch_score_as_the_base_with_summed_deltas(llm: LLM, goldens: Goldens) -> None:
    assert {len(mix) for mix in MIXED.values()} == set(range(2, 9))
    for name, scores in zip(TARGETS, scored_together(llm, goldens.rows, list(TARGETS.values())), strict=True):
        assert max_difference(scores, expected(goldens, name)) <= BOUND, name


def test_a_changed_weight_is_noticed(llm: LLM, goldens: Goldens) -> None:
    changed: list[dict[str, float] | None] = [
        {**mix, first: mix[first] + 1.0} for mix in MIXED.values() for first in list(mix)[:1]
    ]
    for name, scores in zip(MIXED, scored_together(llm, goldens.rows, changed), strict=True):
        assert max_difference(scores, goldens.mixes[name]) >= MOVED, name
