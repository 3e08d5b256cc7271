"""Adapters of few bits answer as peft does with the numbers that are left of them."""

from pathlib import Path

import pytest

from convert.merge import export_adapter
from openlora_jax.adapters.few_bits import AdapterFormat, Rounding
from openlora_jax.adapters.store import AdapterStore
from tests.parity.cases import ADAPTERS
from tests.parity.conftest import House
from tests.parity.goldens import Goldens, adapter_directory, base_directory, max_difference

pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.parity.make_goldens.oracle import load_adapter, score

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

BOUND, ROUNDED = 1e-3, 1e-2
"""Of log-probabilities: between the two, and to the adapter before it was rounded."""


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["rank_17", "embed_head", "token_rows_tied", "rslora"])
def test_scores(name: str, kind: AdapterFormat, house: House, goldens: Goldens, tmp_path: Path) -> None:
    base, rounded = base_directory(ADAPTERS[name].base), f"{name}_{kind}"
    house.install(rounded, adapter_directory(name), base, few_bits=Rounding(kind, dtype="float32"))
    store = AdapterStore(house.paths(base)[1])
    export_adapter(*store.read(store.resolve(rounded)), tmp_path / "out")
    wanted = score(load_adapter(base, tmp_path / "out"), goldens.rows)
    assert max_difference(house.score(base, goldens.rows, {rounded: 1.0}), wanted) <= BOUND
    if kind == "int4":
        assert max_difference(wanted, goldens.adapters[name]) >= ROUNDED
