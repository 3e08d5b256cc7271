"""Every family against transformers and every PEFT feature against peft, float32, from committed answers."""

import pytest

from tests.parity.cases import ADAPTERS, BASES, MIXES
from tests.parity.conftest import House
from tests.parity.goldens import BOUND, MOVED, Goldens, Scores, adapter_directory, base_directory, max_difference


def adapter_scores(house: House, goldens: Goldens, name: str, weight: float) -> Scores:
    base = base_directory(ADAPTERS[name].base)
    house.install(name, adapter_directory(name), base)
    return house.score(base, goldens.rows, {name: weight})


@pytest.mark.parametrize("name", BASES)
def test_base_scores_as_with_transformers(name: str, house: House, goldens: Goldens) -> None:
    assert max_difference(house.score(base_directory(name), goldens.rows), goldens.bases[name]) <= BOUND


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_scores_as_with_peft(name: str, house: House, goldens: Goldens) -> None:
    assert max_difference(adapter_scores(house, goldens, name, 1.0), goldens.adapters[name]) <= BOUND


@pytest.mark.parametrize("name", MIXES)
def test_mix_scores_as_the_base_with_summed_deltas(name: str, house: House, goldens: Goldens) -> None:
    case = MIXES[name]
    base = base_directory(case.base)
    for adapter in case.adapters:
        house.install(adapter, adapter_directory(adapter), base)
    assert max_difference(house.score(base, goldens.rows, case.adapters), goldens.mixes[name]) <= BOUND


@pytest.mark.parametrize("name", [name for name, case in ADAPTERS.items() if not case.is_alone])
def test_a_doubled_scale_is_noticed(name: str, house: House, goldens: Goldens) -> None:
    assert max_difference(adapter_scores(house, goldens, name, 2.0), goldens.adapters[name]) >= MOVED


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_dropped_adapter_is_noticed(name: str, house: House, goldens: Goldens) -> None:
    dropped = house.score(base_directory(ADAPTERS[name].base), goldens.rows)
    assert max_difference(dropped, goldens.adapters[name]) >= MOVED


@pytest.mark.parametrize("name", MIXES)
def test_a_dropped_member_is_noticed(name: str, house: House, goldens: Goldens) -> None:
    case = MIXES[name]
    base = base_directory(case.base)
    for dropped in case.adapters:
        rest = {adapter: weight for adapter, weight in case.adapters.items() if adapter != dropped}
        for adapter in rest:
            house.install(adapter, adapter_directory(adapter), base)
        assert max_difference(house.score(base, goldens.rows, rest), goldens.mixes[name]) >= MOVED
