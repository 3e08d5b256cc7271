"""How a request wants its tokens chosen, with the limits that keep one request from costing another."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_SAMPLES = 8
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGIT_BIAS = 300

Finite = Annotated[float, Field(allow_inf_nan=False)]


class SamplingParams(BaseModel):
    """Sampling as its users know it. Temperature 0 is greedy; a value out of range raises pydantic's ValidationError.

    Attributes:
        max_tokens: most tokens to generate, the end token included.
        min_tokens: end tokens and stop ids are forbidden before that many.
        temperature: 0 picks the most likely token; above, logits are divided by it.
        top_k: sample among the k most likely; 0 for all.
        top_p: sample among the fewest most likely tokens whose probabilities reach p.
        min_p: drop tokens less likely than p times the most likely one.
        seed: reproduces the samples whatever else is in the batch; drawn at admission and reported when None.
        repetition_penalty: CTRL's divisor of the logits of tokens seen in prompt or output; 1 is none.
        presence_penalty: taken from the logits of tokens in the output.
        frequency_penalty: the same, times the count.
        logit_bias: token id -> number added to its logit.
        stop: strings that end the output; they are not part of it.
        stop_token_ids: ids that end the output, beside the model's own end tokens.
        ignore_eos: go on past the model's end tokens.
        logprobs: how many most likely alternatives to report beside each token; None reports nothing.
        n: independent samples of the one prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(128, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: Finite = Field(0.0, ge=0.0, le=100.0)
    top_k: int = Field(0, ge=0, lt=2**31)
    top_p: Finite = Field(1.0, gt=0.0, le=1.0)
    min_p: Finite = Field(0.0, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=0, lt=2**31)
    repetition_penalty: Finite = Field(1.0, ge=0.01, le=10.0)
    presence_penalty: Finite = Field(0.0, ge=-2.0, le=2.0)
    frequency_penalty: Finite = Field(0.0, ge=-2.0, le=2.0)
    logit_bias: dict[int, Annotated[Finite, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict, max_length=MAX_LOGIT_BIAS
    )
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)], ...] = Field((), max_length=MAX_STOPS)
    stop_token_ids: tuple[int, ...] = Field((), max_length=MAX_STOPS)
    ignore_eos: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
