from pathlib import Path

import pytest

from openlora_jax import observed
from openlora_jax.errors import BadCheckpoint
from openlora_jax.observed import Observed, Planned, observed_path

BASE = "b" * 64


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = observed_path(tmp_path, BASE)
    assert Observed.read(path, BASE) == Observed(base_digest=BASE), "nothing at the first start"
    planned = Planned(basis="dtype=float32", pages={"q_proj": 33}, kv_blocks=513)
    seen = Observed(base_digest=BASE, planned=planned, uses={"a": 3}, kv_tokens=5, preemptions=1, activations=7)
    seen.write(path)
    assert Observed.read(path, BASE) == seen
    assert list(tmp_path.iterdir()) == [path]


def test_older_requests_count_half() -> None:
    before = Observed(base_digest=BASE, uses={"a": 9, "b": 1}, preemptions=3)
    now = Observed(base_digest=BASE, uses={"a": 1, "c": 2}).after(before)
    assert (now.uses, now.preemptions) == ({"a": 5, "c": 2}, 0)


def test_those_asked_for_most_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "MAX_DIGESTS", 2)
    nothing = Observed(base_digest=BASE)
    assert Observed(base_digest=BASE, uses={"a": 1, "b": 3, "c": 2}).after(nothing).uses == {"b": 3, "c": 2}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"base_digest": 3}', '{"base_digest": "b", "kv_tokens": -1}', '{"base_digest": "other"}']
)
def test_what_is_damaged_or_of_another_base_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "observed.json"
    path.write_text(text)
    with pytest.raises(BadCheckpoint, match=r"delete it|observed\.json"):
        Observed.read(path, BASE)


def test_the_file_stays_within_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "observed.json"
    uses = {f"{index:064x}": 2**40 + index for index in range(3 * observed.MAX_DIGESTS)}
    nothing = Observed(base_digest=BASE)
    Observed(base_digest=BASE, uses=uses).after(nothing).write(path)
    assert len(Observed.read(path, BASE).uses) == observed.MAX_DIGESTS
