from pathlib import Path

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.observed import Observed
from openlora_jax.planning import asked_before
from tests.openlora_jax.tiny import DIGEST, write_tiny_store


def test_requests_of_the_last_start_count_half_and_only_of_what_is_registered(tmp_path: Path) -> None:
    store = AdapterStore(write_tiny_store(tmp_path / "store"))
    digest = store.resolve("one")
    seen = Observed(base_digest=DIGEST, uses={digest: 7, "0" * 64: 9})
    assert asked_before(store, seen) == {digest: 3.5}
    assert asked_before(None, seen) == {}
    with open(store.path / "registry.jsonl", "a") as registry:
        registry.write("no registration\n")
    assert asked_before(store, seen) == {}
