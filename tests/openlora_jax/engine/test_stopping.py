import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.stopping import Output, StopStrings
from tests.openlora_jax.engine.fakes import LetterDetokenizer


def first_stop(text: str, stops: list[str], armed_from: int) -> int | None:
    """Where the text ends because of the first stop string to complete at or after `armed_from` characters."""
    for end in range(armed_from + 1, len(text) + 1):
        cuts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if cuts:
            return min(cuts)
    return None


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    unarmed=st.integers(0, 4),
)
def test_any_borders_give_the_same_text(pieces: list[str], stops: list[str], unarmed: int) -> None:
    matcher, shown, stopped = StopStrings(stops), "", False
    for number, piece in enumerate(pieces):
        text, stopped = matcher.push(piece, armed=number >= unarmed)
        shown += text
        if stopped:
            break
    shown += matcher.flush()
    whole = "".join(pieces)
    end = first_stop(whole, stops, len("".join(pieces[:unarmed])))
    assert stopped == (end is not None)
    assert shown == whole[:end]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["x", "STO", "Q"], ["x", "", "STOQ"]),
        (["xS", "TO", "P", "y"], ["x", "", "", ""]),
        (["xST", "OSTOP"], ["x", "STO"]),
        (["plain"], ["plain"]),
    ],
)
def test_holds_back_only_what_may_become_a_stop_string(pieces: list[str], shown: list[str]) -> None:
    matcher = StopStrings(["STOP"])
    texts = []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        texts.append(text)
        if stopped:
            break
    assert texts == shown[: len(texts)]
    assert stopped == ("STOP" in "".join(pieces))


def output(end_ids: set[int] | None = None, **params: object) -> Output:
    return Output(SamplingParams.model_validate({"max_tokens": 4} | params), end_ids or set(), LetterDetokenizer())


def test_an_end_token_is_not_text_but_completes_the_last_character() -> None:
    sample = output({9})
    assert sample.push(1) == ("b", None)
    assert sample.push(9) == ("b", "stop")


def test_the_length_limit_flushes_what_was_held_back() -> None:
    sample = output(stop=["bbca"], max_tokens=2)
    assert sample.push(1) == ("", None)
    assert sample.push(2) == ("bbcc", "length")


def test_a_stop_string_in_the_last_character_wins_over_the_length_limit() -> None:
    sample = output(stop=["cc"], max_tokens=2)
    sample.push(1)
    assert sample.push(2) == ("b", "stop")


def test_cut_gives_the_text_held_back() -> None:
    sample = output(stop=["bbb"])
    assert sample.push(1) == ("", None)
    assert sample.cut() == "b"
