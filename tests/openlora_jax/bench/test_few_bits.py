"""`bench few-bits` without its model: random adapters are installed and loaded in every form."""

from pathlib import Path

import pytest

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.bench import few_bits
from tests.openlora_jax.test_int4_pages import WIDE
from tests.openlora_jax.tiny import DIGEST


def test_random_adapters_are_measured_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_bits, "RANDOM", 2)
    monkeypatch.setattr(few_bits, "ROUNDS", 1)
    store = AdapterStore.create(tmp_path)
    found = few_bits.install(store, few_bits.random_adapters(WIDE, DIGEST))
    assert len(store.registrations()) == 2 * len(few_bits.FORMS)
    few_bits.load(store, WIDE, "float32", found)
    for measured in found:
        sixteen, eight, four = measured.sizes
        assert eight / sixteen == pytest.approx(8.5 / 16)
        assert four / sixteen == pytest.approx(4.5 / 16)
        eighth, fourth = measured.errors
        assert max(eighth) < 0.02 < min(fourth)
        assert len(measured.loads) == len(measured.cold) == len(few_bits.LOADS)
