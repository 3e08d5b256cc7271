"""When a sample ends and which text it has by then: end tokens, stop strings, the length limit."""

from collections.abc import Iterable, Set
from typing import Protocol, runtime_checkable

from openlora_jax.engine.request import FinishReason
from openlora_jax.engine.sampling_params import SamplingParams


@runtime_checkable
class Detokenizer(Protocol):
    """Turns one sample's ids into text as they come."""

    def push(self, token_id: int) -> str:
        """The complete characters that this token adds."""

    def flush(self) -> str:
        """What is left of an unfinished character."""


class StopStrings:
    """Finds the first completed stop string in a text that comes in pieces, whatever their borders.

    One automaton for each string (Knuth, Morris, Pratt 1977). Text that could be the beginning of one is held back.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._automata = [(stop, _failure(stop)) for stop in stops]
        self._matched = [0] * len(self._automata)
        self._held = ""

    def push(self, text: str, armed: bool = True) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string ended it; unarmed, a stop string is text."""
        self._held += text
        unseen = len(self._held) - len(text)
        for end in range(unseen + 1, len(self._held) + 1):
            completed = self._advance(self._held[end - 1])
            if completed and armed:
                shown, self._held = self._held[: end - completed], ""
                return shown, True
        cut = len(self._held) - max(self._matched, default=0)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """The text held back, now that no more comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Moves every automaton on; the length of the longest stop string completed here, or 0."""
        completed = 0
        for index, (stop, failure) in enumerate(self._automata):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                completed = max(completed, matched)
                matched = failure[matched - 1]
            self._matched[index] = matched
        return completed


class Output:
    """One sample's text so far, and the rules that end it.

    An end token is counted and reported but is not text. A stop string that completes before `min_tokens` is text.
    """

    def __init__(self, params: SamplingParams, end_ids: Set[int], detokenizer: Detokenizer) -> None:
        self._params = params
        self._end_ids = end_ids
        self._detokenizer = detokenizer
        self._stops = StopStrings(params.stop)
        self._count = 0

    def push(self, token_id: int) -> tuple[str, FinishReason | None]:
        """The new text that may be shown, and why the sample ended, if it did."""
        self._count += 1
        armed = self._count >= self._params.min_tokens
        if token_id in self._end_ids:
            return self._rest(armed)[0], "stop"
        text, stopped = self._stops.push(self._detokenizer.push(token_id), armed)
        if stopped:
            return text, "stop"
        if self._count < self._params.max_tokens:
            return text, None
        rest, stopped = self._rest(armed)
        return text + rest, "stop" if stopped else "length"

    def cut(self) -> str:
        """The text held back, for a sample that is ended from outside."""
        return self._stops.flush()

    def _rest(self, armed: bool) -> tuple[str, bool]:
        text, stopped = self._stops.push(self._detokenizer.flush(), armed)
        return text + self._stops.flush(), stopped


def _failure(pattern: str) -> list[int]:
    """For each prefix of the pattern, the length of its longest proper prefix that is also its suffix."""
    failure = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[matched] != pattern[index]:
            matched = failure[matched - 1]
        matched += pattern[matched] == pattern[index]
        failure[index] = matched
    return failure
