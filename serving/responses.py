"""The engine's events into messages of the wire. No I/O, no waiting."""

from collections.abc import Mapping, Sequence

from openlora_jax.engine.request import Delta, Finished, Scored, Timings, TokenLogprobs
from serving.proto import openlora_pb2 as pb

FINISH_REASONS: Mapping[str | None, pb.FinishReason] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}


def delta(event: Delta) -> pb.Delta:
    return pb.Delta(
        index=event.index,
        text=event.text,
        token_ids=event.token_ids,
        logprobs=[token_logprobs(token) for token in event.logprobs],
        finish_reason=FINISH_REASONS[event.finish_reason],
    )


def token_logprobs(token: TokenLogprobs) -> pb.TokenLogprobs:
    top = [pb.TokenAlternative(token_id=id_, logprob=logprob) for id_, logprob in token.top.items()]
    return pb.TokenLogprobs(token_id=token.token_id, logprob=token.logprob, top=top)


def finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        seed=event.seed,
        adapter_digests=event.adapter_digests,
        usage=pb.Usage(prompt_tokens=event.prompt_tokens, completion_tokens=event.completion_tokens),
        timings=timings(event.timings),
    )


def response(outputs: Sequence[pb.Output], end: pb.Finished) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        outputs=outputs, seed=end.seed, adapter_digests=end.adapter_digests, usage=end.usage, timings=end.timings
    )


def scored(event: Scored) -> pb.ScoreResponse:
    return pb.ScoreResponse(
        logprobs=event.logprobs,
        greedy=event.greedy,
        adapter_digests=event.adapter_digests,
        timings=timings(event.timings),
    )


def timings(times: Timings) -> pb.Timings:
    return pb.Timings(queue=times.queue, load=times.load, prefill=times.prefill, decode=times.decode, room=times.room)


def append(output: pb.Output, event: Delta) -> None:
    """Adds one delta to the sample that it belongs to."""
    output.text += event.text
    output.token_ids.extend(event.token_ids)
    output.logprobs.extend(token_logprobs(token) for token in event.logprobs)
    output.finish_reason = FINISH_REASONS[event.finish_reason]
