"""What the device's results become for the client: events."""

from openlora_jax.engine.plan import TileScores
from openlora_jax.engine.request import Delta, Event, Finished, Scored, TokenLogprobs
from openlora_jax.engine.sequence import LiveRequest, Sequence


def take_token(sequence: Sequence, token: TokenLogprobs) -> Delta | None:
    """The next token of a sample, read from the device; None from a row that does not speak for its ensemble."""
    if sequence.params is None:
        raise RuntimeError("a text to score has no samples")
    sequence.tokens.append(token.token_id)
    sequence.in_flight -= 1
    if sequence.output is None:
        return None
    text, reason = sequence.output.push(token.token_id)
    return Delta(
        index=sequence.index,
        token_ids=(token.token_id,),
        text=text,
        logprobs=(token,) if sequence.params.logprobs is not None else (),
        finish_reason=reason,
    )


def take_scores(sequence: Sequence, start: int, scores: TileScores) -> bool:
    """The scores of a tile that starts at position `start`; whether they were the last."""
    prompt_part = max(0, sequence.prompt_len - 1 - start)
    sequence.logprobs += scores.logprobs[prompt_part:]
    sequence.greedy += scores.greedy[prompt_part:]
    return len(sequence.logprobs) == len(sequence.tokens) - sequence.prompt_len


def last_events(live: LiveRequest, now: float) -> list[Event]:
    """The events that end a request which is complete, or which was cancelled."""
    events: list[Event] = [
        Delta(index=sample.index, token_ids=(), text=sample.output.cut(), finish_reason="cancelled")
        for sample in live.sequences
        if sample.output and not sample.finished
    ]
    first = live.sequences[0]
    if first.params:
        return [*events, _finished(live, now)]
    return [_scored(live, first, now)] if first.finished else []


def _finished(live: LiveRequest, now: float) -> Finished:
    return Finished(
        seed=live.seed,
        adapter_digests=live.digests,
        prompt_tokens=len(live.request.prompt_ids),
        completion_tokens=sum(len(sample.tokens) - sample.prompt_len for sample in live.sequences if sample.output),
        timings=live.timings(now),
    )


def _scored(live: LiveRequest, sequence: Sequence, now: float) -> Scored:
    return Scored(
        logprobs=tuple(sequence.logprobs),
        greedy=tuple(sequence.greedy),
        adapter_digests=live.digests,
        timings=live.timings(now),
    )
