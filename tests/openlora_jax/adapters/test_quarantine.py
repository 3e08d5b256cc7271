import pytest

from openlora_jax.adapters import quarantine
from openlora_jax.adapters.quarantine import FIRST_WAIT, LONGEST_WAIT, Failure, Quarantine
from openlora_jax.errors import (
    AdapterDamaged,
    AdapterOutOfMemory,
    AdapterUnavailable,
    AdapterUnreachable,
    BadCheckpoint,
)

FAILURE = Failure(AdapterUnreachable, "gone")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_failure_doubles_the_wait_up_to_a_bound() -> None:
    clock = Clock()
    failures = Quarantine(clock)
    waits = []
    for _ in range(8):
        waits.append(failures.failed("a", FAILURE).retry_after)
        clock.now += waits[-1] - 0.25
        refused = failures.refusal("a")
        assert refused
        assert refused.retry_after == pytest.approx(0.25)
        clock.now += 0.25
        assert failures.refusal("a") is None
    assert waits == [FIRST_WAIT * 2**n for n in range(6)] + [LONGEST_WAIT] * 2
    assert failures.refusal("b") is None


def test_what_is_forgotten_begins_anew() -> None:
    failures = Quarantine(Clock())
    for _ in range(3):
        failures.failed("a", FAILURE)
    failures.forget("a")
    failures.forget("unknown")
    assert failures.refusal("a") is None
    assert failures.failed("a", FAILURE).retry_after == FIRST_WAIT


def test_the_oldest_failures_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_DIGESTS", 2)
    failures = Quarantine(Clock())
    for digest in "abac":
        failures.failed(digest, FAILURE)
    assert [digest for digest in "abc" if failures.refusal(digest)] == ["a", "c"]


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (BadCheckpoint("manifest.json", "is not JSON"), AdapterDamaged),
        (FileNotFoundError("manifest.json"), AdapterDamaged),
        (OSError(5, "Input/output error"), AdapterUnreachable),
        (TimeoutError(), AdapterUnreachable),
        (MemoryError(), AdapterOutOfMemory),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), AdapterOutOfMemory),
        (RuntimeError("INTERNAL: it broke"), AdapterUnavailable),
        (ValueError("it was converted for base b"), AdapterUnavailable),
    ],
    ids=repr,
)
def test_what_went_wrong_decides_the_error(cause: Exception, kind: type[AdapterUnavailable]) -> None:
    error = Failure.of(cause).error("sql", "ab")
    assert type(error) is kind
    assert error.reason == (str(cause) or type(cause).__name__)
