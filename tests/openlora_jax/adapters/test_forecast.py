import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_jax.adapters import forecast
from openlora_jax.adapters.forecast import HALF_LIFE, Forecast


def test_a_request_counts_half_after_the_half_life() -> None:
    seen = Forecast()
    seen.asked("a", 0.0)
    seen.asked("a", HALF_LIFE)
    assert seen.count("a", HALF_LIFE) == pytest.approx(1.5)
    assert seen.count("a", 3 * HALF_LIFE) == pytest.approx(0.375)
    assert seen.count("b", 0.0) == 0.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 1e5)), max_size=30))
def test_the_score_is_the_logarithm_of_the_weighted_sum(gaps: list[tuple[str, float]]) -> None:
    seen, now, exact = Forecast(), 0.0, dict.fromkeys("abc", 0.0)
    for digest, gap in gaps:
        now += gap
        exact = {each: count * 2 ** (-gap / HALF_LIFE) + (each == digest) for each, count in exact.items()}
        seen.asked(digest, now)
    for digest, count in exact.items():
        assert seen.count(digest, now) == pytest.approx(count, rel=1e-6, abs=1e-12)


def test_what_was_asked_for_most_of_late() -> None:
    seen = Forecast({"before": 4.0, "never": 0.0}, now=0.0)
    for now in (0.0, 1.0, 2.0):
        seen.asked("often", now)
    seen.asked("once", 2.0)
    assert seen.most(["once", "often", "unknown"]) == "often"
    assert seen.most(["before", "often"]) == "before"
    assert seen.most(["never", "unknown"]) is None
    seen.forget("often")
    assert seen.most(["once", "often"]) == "once"


def test_a_flood_of_digests_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "MAX_DIGESTS", 8)
    seen = Forecast()
    for _ in range(3):
        seen.asked("often", 0.0)
    for number in range(1000):
        seen.asked(f"flood{number}", 0.0)
        assert len(seen._scores) <= 8
    assert seen.count("often", 0.0) == pytest.approx(3.0)
