"""What the sampler must know of one row of a step: plain numbers, made from a request's parameters, no arrays."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from openlora_jax.engine.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSampling:
    """One sample's way of choosing tokens; the same at every step, except for `forbidden`.

    Attributes:
        temperature, top_k, top_p, min_p: as in SamplingParams.
        repetition_penalty, presence_penalty, frequency_penalty: as in SamplingParams.
        biased: the slot's logit bias applies.
        seed: of the request, in [0, 2**31).
        sample: index of the sample within the request, in [0, n).
        forbidden: token ids that cannot be chosen now, the ends before `min_tokens`.
        logprobs: alternatives to report; None reports nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    biased: bool = False
    seed: int = 0
    sample: int = 0
    forbidden: tuple[int, ...] = ()
    logprobs: int | None = None

    @classmethod
    def of(cls, params: SamplingParams, *, seed: int, sample: int = 0) -> "RowSampling":
        """The row of sample number `sample` of a request; nothing is forbidden yet."""
        return cls(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            biased=bool(params.logit_bias),
            seed=seed,
            sample=sample,
            logprobs=params.logprobs,
        )

    def forbidding(self, token_ids: Iterable[int]) -> "RowSampling":
        """The same row with these ids forbidden instead of those before."""
        return replace(self, forbidden=tuple(token_ids))

    @property
    def penalised(self) -> bool:
        """Whether the slot's prompt and output tokens bear on the choice."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def uses_slot(self) -> bool:
        """Whether the slot must be prepared: its seen tokens, counts or bias are read."""
        return self.penalised or self.biased
