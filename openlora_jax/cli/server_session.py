"""A server that runs elsewhere, through its client."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from openlora_jax.cli.rows import Line
from openlora_jax.engine.request import FinishReason, Scored, Timings, TokenLogprobs
from openlora_jax.inputs import Adapter, GenerateInput, ScoreInput, Target
from openlora_jax.outputs import Generation, Sample

if TYPE_CHECKING:
    from serving.proto import openlora_pb2 as pb

CALLS = 16
"""Calls at a time, so that the server has a batch."""

Row = TypeVar("Row")
Result = TypeVar("Result")


class ServerSession:
    """The server checks each line in its turn."""

    def __init__(self, server: str) -> None:
        from serving.client import Client

        self._client = Client(server)

    def __enter__(self) -> "ServerSession":
        return self

    def __exit__(self, *error: Any) -> None:
        self._client.close()

    def generate(self, lines: Sequence[Line[GenerateInput]]) -> Iterator[Generation]:
        def call(line: Line[GenerateInput]) -> Generation:
            row = line.row
            answer = self._client.generate(row.prompt, row.params, adapter=_target(row), scheduling=row.scheduling)
            return _generation(answer)

        return _concurrently(call, lines)

    def score(self, lines: Sequence[Line[ScoreInput]]) -> Iterator[Scored]:
        def call(line: Line[ScoreInput]) -> Scored:
            row = line.row
            answer = self._client.score(row.prompt, row.completion, adapter=_adapter(row), scheduling=row.scheduling)
            return _scored(answer)

        return _concurrently(call, lines)

    def stream(self, row: GenerateInput) -> Iterator[str]:
        """The text of the first sample as it comes."""
        events = self._client.generate_stream(row.prompt, row.params, adapter=_target(row), scheduling=row.scheduling)
        for event in events:
            if event.HasField("delta") and event.delta.index == 0:
                yield event.delta.text


def _concurrently(call: Callable[[Row], Result], rows: Sequence[Row]) -> Iterator[Result]:
    threads = ThreadPoolExecutor(CALLS, "openlora-call")
    try:
        yield from threads.map(call, rows)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _target(row: GenerateInput) -> Target:
    return row.ensemble or _adapter(row)


def _adapter(row: GenerateInput | ScoreInput) -> Adapter:
    return {item.adapter: item.weight for item in row.mix} or None


def _generation(answer: "pb.GenerateResponse") -> Generation:
    return Generation(
        outputs=tuple(_sample(output) for output in answer.outputs),
        seed=answer.seed,
        adapter_digests=tuple(answer.adapter_digests),
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        timings=_timings(answer.timings),
    )


def _sample(output: "pb.Output") -> Sample:
    return Sample(
        text=output.text,
        token_ids=tuple(output.token_ids),
        finish_reason=_finish_reason(output.finish_reason),
        logprobs=tuple(
            TokenLogprobs(token.token_id, token.logprob, {other.token_id: other.logprob for other in token.top})
            for token in output.logprobs
        ),
    )


def _finish_reason(value: int) -> FinishReason:
    from serving.proto import openlora_pb2 as pb

    names: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
    return names.get(value, "cancelled")


def _scored(answer: "pb.ScoreResponse") -> Scored:
    return Scored(
        logprobs=tuple(answer.logprobs),
        greedy=tuple(answer.greedy),
        adapter_digests=tuple(answer.adapter_digests),
        timings=_timings(answer.timings),
    )


def _timings(timings: "pb.Timings") -> Timings:
    names = ("queue", "load", "prefill", "decode", "room")
    return Timings(**{name: getattr(timings, name) for name in names})
