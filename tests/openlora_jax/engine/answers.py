"""What the engine of `fakes` must answer, worked out by hand, and its events put together to be compared with that.

The next token is

    (sum over positions p of (p + 1) * (token_p + p)  +  mix  +  31 * seed  +  17 * sample index) mod VOCAB

with mix = the sum over the members of round(10 * weight) * number of the adapter, moved on by 1 while it is forbidden.
The rows of an ensemble sample the sum of their tokens, each times round(10 * weight of its member), modulo VOCAB.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from openlora_jax.engine.request import Delta, Event, Finished, GenerateRequest, Scored, ScoreRequest
from openlora_jax.errors import OpenLoraError

VOCAB = 97
EOS = 0


def mix_value(members: Iterable[tuple[int, float]]) -> int:
    """What a mix of (adapter number, weight) adds to the next token."""
    return sum(round(10 * weight) * number for number, weight in members)


def next_token(tokens: Sequence[int], mix: int, seed: int, sample: int, forbidden: Iterable[int] = ()) -> int:
    token = (sum((p + 1) * (token + p) for p, token in enumerate(tokens)) + mix + 31 * seed + 17 * sample) % VOCAB
    while token in forbidden:
        token = (token + 1) % VOCAB
    return token


def joint_token(tokens: Iterable[int], weights: Iterable[float]) -> int:
    """What an ensemble samples whose members alone would sample these tokens."""
    return sum(round(10 * weight) * token for token, weight in zip(tokens, weights, strict=True)) % VOCAB


def score(tokens: Sequence[int], mix: int, target: int) -> tuple[float, bool]:
    """The "log-probability" of a target after these tokens, and whether it was the best."""
    best = next_token(tokens, mix, 0, 0)
    return -float((target - best) % VOCAB), target == best


def text_of(ids: Iterable[int]) -> str:
    """Two letters a token."""
    return "".join(chr(97 + token % 5) + chr(97 + token % 3) for token in ids)


@dataclass
class Sample:
    """What one sample's deltas add up to."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        assert self.finish_reason is None, "a delta after the last"
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.finish_reason = delta.finish_reason


@dataclass
class Answer:
    """All events of a request, put together; `error` is what its stream raised."""

    samples: list[Sample] = field(default_factory=list)
    last: Finished | Scored | None = None
    error: OpenLoraError | None = None


def collect(stream: Iterable[Event]) -> Answer:
    """Reads a stream to its end. Waits for a running engine; never for one that has come to rest."""
    answer = Answer()
    try:
        for event in stream:
            assert answer.last is None, "an event after the last"
            if isinstance(event, Delta):
                answer.samples += [Sample() for _ in range(event.index + 1 - len(answer.samples))]
                answer.samples[event.index].add(event)
            else:
                answer.last = event
    except OpenLoraError as error:
        answer.error = error
    return answer


def expected_sample(request: GenerateRequest, index: int) -> Sample:
    """What sample `index` must be, worked out without an engine."""
    params = request.params
    mixes = [mix_value((int(item.adapter[1:]), item.weight) for item in mix) for mix in request.mixes]
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    output: list[int] = []
    while True:
        forbidden = ends if len(output) < params.min_tokens else set[int]()
        known = [*request.prompt_ids, *output]
        alone = [next_token(known, mix, params.seed or 0, index, forbidden) for mix in mixes]
        output.append(joint_token(alone, request.ensemble.weights) if request.ensemble else alone[0])
        ended = output[-1] in ends
        last = ended or len(output) == params.max_tokens
        text = text_of(output[: len(output) - ended])
        visible = len(text) if last else len(text) - 1
        # Letters that this token made visible; min_tokens leaves stop strings that completed before alone.
        fresh = max(0, 2 * (len(output) - 1) - 1)
        for end in range(fresh + 1, visible + 1):
            cuts = [end - len(stop) for stop in params.stop if text[:end].endswith(stop)]
            if cuts and len(output) >= params.min_tokens:
                return Sample(tuple(output), text[: min(cuts)], "stop")
        if last:
            return Sample(tuple(output), text, "stop" if ended else "length")


def expected_scores(request: ScoreRequest) -> list[tuple[float, bool]]:
    """What a score must be, worked out without an engine."""
    mix = mix_value((int(item.adapter[1:]), item.weight) for item in request.mix)
    tokens = [*request.prompt_ids, *request.completion_ids]
    return [score(tokens[:position], mix, tokens[position]) for position in range(len(request.prompt_ids), len(tokens))]
