from pathlib import Path

import pytest

from openlora_jax.adapters.demand import UNKNOWN
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from openlora_jax.observed import Observed
from openlora_jax.planning import asked_before, plan_start
from tests.openlora_jax.tiny import DIGEST, MODEL, SETTINGS, write_tiny_store


def test_requests_of_the_last_start_count_half_and_only_of_what_is_registered(tmp_path: Path) -> None:
    store = AdapterStore(write_tiny_store(tmp_path / "store"))
    digest = store.resolve("one")
    seen = Observed(base_digest=DIGEST, uses={digest: 7, "0" * 64: 9})
    assert asked_before(store, seen) == {digest: 3.5}
    assert asked_before(None, seen) == {}
    with open(store.path / "registry.jsonl", "a") as registry:
        registry.write("no registration\n")
    assert asked_before(store, seen) == {}


def test_pages_in_4_bits_that_a_base_cannot_have_are_refused() -> None:
    seen = Observed(base_digest=DIGEST)
    with pytest.raises(InvalidConfig, match="int4_pages: this base has a width that is no multiple of 64, so no"):
        plan_start(EngineConfig(**SETTINGS, int4_pages=2), MODEL, UNKNOWN, seen, None)
    plan_start(EngineConfig(**SETTINGS, int4_pages=1), MODEL, UNKNOWN, seen, None)
