"""What goes into the engine and what comes out: plain data, no arrays."""

from dataclasses import dataclass, field
from typing import Literal

from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams

FinishReason = Literal["stop", "length", "cancelled"]
Method = Literal["mean_logits", "mean_probs"]

MAX_ENSEMBLE = 8
"""Members of an ensemble, at most."""


@dataclass(frozen=True, slots=True)
class MixItem:
    """One member of a mix: a registered adapter's name and its finite weight."""

    adapter: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Members that answer together: at every step their distributions are combined, and one token is chosen for all.

    Attributes:
        members: the mix of each; () is the base model.
        weights: one a member; () is the mean of all. For `mean_probs` not negative, and taken by their sum.
        method: what is combined: `mean_logits`, the weighted sum of the logits, or `mean_probs`, of the probabilities.
    """

    members: tuple[tuple[MixItem, ...], ...]
    weights: tuple[float, ...] = ()
    method: Method = "mean_logits"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """A prompt to continue. `mix` is empty for the base model, one item of weight 1 for a plain adapter.

    With an `ensemble`, its members answer and `mix` is empty.

    `deadline` is in `time.monotonic()` seconds; the request ends with DeadlineExceeded within one step of it.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    mix: tuple[MixItem, ...] = ()
    ensemble: Ensemble | None = None
    deadline: float | None = None
    scheduling: SchedulingParams = DEFAULT_SCHEDULING

    @property
    def mixes(self) -> tuple[tuple[MixItem, ...], ...]:
        """Of the rows that make one sample: one, or one for each member of an ensemble."""
        return self.ensemble.members if self.ensemble else (self.mix,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """A completion to score token by token, given the prompt that precedes it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mix: tuple[MixItem, ...] = ()
    deadline: float | None = None
    scheduling: SchedulingParams = DEFAULT_SCHEDULING

    @property
    def mixes(self) -> tuple[tuple[MixItem, ...], ...]:
        """Of the one row that it takes."""
        return (self.mix,)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A chosen token's log-probability and the most likely alternatives (id -> log-probability, best first)."""

    token_id: int
    logprob: float
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """New text of one sample. `finish_reason` is set on its last delta; `text` never holds half a character."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; the first four add up to all of it.

    Attributes:
        queue: from when its adapters were in host memory to its start.
        load: until its adapters were in host memory.
        room: of `queue`, from when everything but room for its adapters on the device was there.
    """

    queue: float
    load: float
    prefill: float
    decode: float
    room: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event of a generate request, after every sample's last delta. An ensemble's digests are its members'."""

    seed: int
    adapter_digests: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    timings: Timings


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The only event of a score request: per completion token its log-probability and whether it was the argmax."""

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    adapter_digests: tuple[str, ...]
    timings: Timings


Event = Delta | Finished | Scored
