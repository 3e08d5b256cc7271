"""Which requests can be served at all: checked before anything is held for them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from openlora_jax.adapters.mixes import check_mix
from openlora_jax.config import EngineConfig
from openlora_jax.engine.kv_blocks import blocks_for
from openlora_jax.engine.request import GenerateRequest, ScoreRequest
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Admission:
    """The limits that a model and a configuration set to requests. Every check raises InvalidRequest."""

    config: EngineConfig
    vocab_size: int

    def generate(self, request: GenerateRequest) -> GenerateRequest:
        """The request as it will run, with a number of tokens that fits.

        A `max_tokens` that the caller set and that does not fit is refused; the default one is cut to what is left.
        """
        self._check_tokens("prompt", request.prompt_ids)
        check_mix((item.adapter, item.weight) for item in request.mix)
        params = self._fit(request.params, len(request.prompt_ids))
        if params.min_tokens > params.max_tokens:
            raise InvalidRequest("min_tokens", f"{params.min_tokens} is more than max_tokens, {params.max_tokens}")
        if params.n > self.config.max_rows:
            raise InvalidRequest("n", f"{params.n} samples, but the engine runs {self.config.max_rows} rows at once")
        self._check_ids("stop_token_ids", params.stop_token_ids)
        self._check_ids("logit_bias", params.logit_bias)
        reach = len(request.prompt_ids) + params.max_tokens - 1
        self._check_blocks("max_tokens", len(request.prompt_ids), reach, params.n)
        return replace(request, params=params)

    def score(self, request: ScoreRequest) -> ScoreRequest:
        """The request itself."""
        self._check_tokens("prompt", request.prompt_ids)
        self._check_tokens("completion", request.completion_ids)
        check_mix((item.adapter, item.weight) for item in request.mix)
        if request.scheduling.tpot_deadline is not None:
            raise InvalidRequest("tpot_deadline", "a text to score has no tokens to come; leave it out")
        prompt, completion = len(request.prompt_ids), len(request.completion_ids)
        limit = self.config.max_model_len
        if prompt + completion > limit:
            problem = f"{prompt} prompt tokens and {completion} of the completion are more than the {limit} served"
            raise InvalidRequest("completion", f"{problem}; shorten one of them")
        self._check_blocks("completion", prompt, prompt + completion - 1, 1)
        return request

    def _fit(self, params: SamplingParams, prompt_len: int) -> SamplingParams:
        limit = self.config.max_model_len
        if prompt_len >= limit:
            problem = f"{prompt_len} tokens leave no room for an answer within the {limit} served"
            raise InvalidRequest("prompt", f"{problem}; shorten it")
        if prompt_len + params.max_tokens <= limit:
            return params
        if "max_tokens" in params.model_fields_set:
            problem = f"{prompt_len} prompt tokens and max_tokens {params.max_tokens} are more than the {limit} served"
            raise InvalidRequest("max_tokens", f"{problem}; shorten the prompt or ask for {limit - prompt_len} at most")
        return params.model_copy(update={"max_tokens": limit - prompt_len})

    def _check_tokens(self, field: str, ids: Sequence[int]) -> None:
        if not ids:
            raise InvalidRequest(field, "is empty; give at least one token")
        self._check_ids(field, ids)

    def _check_ids(self, field: str, ids: Iterable[int]) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequest(field, f"token id {token_id} is outside the vocabulary, 0..{self.vocab_size - 1}")

    def _check_blocks(self, field: str, prompt_len: int, reach: int, samples: int) -> None:
        """Whether the KV pool, when empty, can start all samples together and run one to its end."""
        size, usable = self.config.kv_block, self.config.kv_blocks - 1
        held = blocks_for(reach if self.config.deterministic else prompt_len, size)
        shared = (prompt_len - 1) // size
        needed = max(held + (samples - 1) * (held - shared), blocks_for(reach, size))
        if needed > usable:
            problem = f"the request needs {needed} KV blocks of {size} tokens, but the engine has {usable}"
            raise InvalidRequest(field, f"{problem}; shorten it or raise kv_blocks in the configuration")
