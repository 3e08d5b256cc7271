"""What a request came to, once all its events are in."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from openlora_jax.engine.request import Delta, Event, Finished, FinishReason, Scored, Timings, TokenLogprobs
from openlora_jax.errors import EngineStopped


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer to a prompt. `logprobs` has an entry a token where they were asked for, else none."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The answers to one prompt, `n` of them.

    Attributes:
        outputs: the samples, in order.
        seed: reproduces them, whatever else is in the batch.
        adapter_digests: of the mix, in its order; empty for the base model.
        prompt_tokens, completion_tokens: counts, over all samples.
        timings: where the time went.
    """

    outputs: tuple[Sample, ...]
    seed: int
    adapter_digests: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    timings: Timings


def collect(events: Iterable[Event]) -> Generation | Scored:
    """Reads a request's events to the end.

    Raises:
        OpenLoraError: what ended the request; EngineStopped if it was cancelled.
    """
    drafts = dict[int, _Draft]()
    for event in events:
        match event:
            case Delta():
                drafts.setdefault(event.index, _Draft()).add(event)
            case Finished():
                return Generation(
                    outputs=tuple(drafts[index].sample() for index in sorted(drafts)),
                    seed=event.seed,
                    adapter_digests=event.adapter_digests,
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    timings=event.timings,
                )
            case Scored():
                return event
    raise EngineStopped("the request was cancelled")


@dataclass(slots=True)
class _Draft:
    """A sample whose deltas still come."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason

    def sample(self) -> Sample:
        return Sample(
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs),
        )
