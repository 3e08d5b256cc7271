"""A budget is held against figures by name."""

import json
from typing import Any

import pytest

from tests.gpu import budget
from tests.gpu.cases import CHIPS, KINDS

FIGURES: dict[str, int | str] = {
    "launches of a layer": 12,
    "kernel: bytes spilled": 0,
    "kernel: registers": 100,
    "kernel: mma": "wgmma",
}


def test_what_was_measured_is_within_its_own_budget() -> None:
    assert budget.breaches(FIGURES, FIGURES) == []
    assert budget.breaches(FIGURES | {"launches of a layer": 3, "kernel: registers": 105}, FIGURES) == []


@pytest.mark.parametrize(
    ("changed", "breach"),
    [
        ({"launches of a layer": 13}, "launches of a layer 13, budget 12"),
        ({"kernel: bytes spilled": 4}, "kernel: bytes spilled 4, budget 0"),
        ({"kernel: registers": 106}, "kernel: registers 106, budget 100"),
        ({"kernel: mma": "mma.sync"}, "kernel: mma mma.sync, budget wgmma"),
        ({"other: registers": 8}, "other: registers 8, budget None"),
    ],
)
def test_more_than_the_budget_is_a_breach(changed: dict[str, Any], breach: str) -> None:
    assert budget.breaches(FIGURES | changed, FIGURES) == [breach]


@pytest.mark.parametrize("name", FIGURES)
def test_every_entry_of_a_budget_counts(name: str) -> None:
    limit = FIGURES[name]
    lower: dict[str, int | str] = {name: limit - 10 if isinstance(limit, int) else "tcgen05"}
    assert len(budget.breaches(FIGURES, FIGURES | lower)) == 1
    assert len(budget.breaches({other: figure for other, figure in FIGURES.items() if other != name}, FIGURES)) == 1


def test_every_step_on_every_chip_has_a_budget_without_spills() -> None:
    committed = json.loads(budget.FILE.read_text())
    steps = {f"{chip} {kind}" for chip in CHIPS for kind in KINDS}
    quantised = {f"h100 {kind} int4 in groups of 128, with offsets" for kind in KINDS}
    assert committed.keys() == steps | quantised | {f"{chip} alone" for chip in CHIPS}
    spilled = [name for step in committed.values() for name, limit in step.items() if "spilled" in name and limit]
    assert spilled == []
