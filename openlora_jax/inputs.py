"""Rows of work as callers write them: one JSON object each, checked here, once, for the command line and for `LLM`.

    {"prompt": "The sea is", "adapter": "pirate", "max_tokens": 32, "temperature": 0.7}
    {"messages": [{"role": "user", "content": "Hi"}], "mix": [{"adapter": "legal", "weight": 0.6}], "id": 17}
    {"prompt": "The sea is", "ensemble": {"members": ["legal", null], "weights": [1.5, -0.5]}}
    {"prompt_ids": [1, 2, 3], "completion": " four"}

What is no known key is carried through to the output; what nearly is one is a mistake.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, SupportsIndex, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openlora_jax.adapters.mixes import check_mix
from openlora_jax.engine.request import Ensemble, GenerateRequest, Method, MixItem, ScoreRequest
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from openlora_jax.errors import InvalidRequest

Prompt = str | Sequence[SupportsIndex] | Sequence[Mapping[str, str]]
"""Text, token ids verbatim, or messages for the chat template."""

Adapter = str | Mapping[str, float] | None
"""A name, a mix of names and weights, or the base model."""

Target = Adapter | Ensemble
"""Who continues a prompt: also several of these together, see `ensemble`."""

MAX_TYPO = 2
"""Edits between an unknown key and the known one that it is taken for, at most; fewer for keys of under 4 letters."""


Model = TypeVar("Model", bound=BaseModel)


@runtime_checkable
class Tokenizer(Protocol):
    """What turns prompts into ids."""

    def encode(self, text: str, special: bool = True) -> list[int]: ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Message(_Strict):
    role: str
    content: str


class _Messages(_Strict):
    messages: list[_Message]


class _Weighted(_Strict):
    adapter: str
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class _Ensemble(_Strict):
    members: list[str | Annotated[list[_Weighted], Field(min_length=1)] | None] = Field(min_length=1)
    weights: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=list)
    method: Method = "mean_logits"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    prompt: str | None = None
    messages: list[_Message] | None = Field(None, min_length=1)
    prompt_ids: list[int] | None = None
    adapter: str | None = None
    mix: list[_Weighted] | None = Field(None, min_length=1)
    ensemble: _Ensemble | None = None


class _ScoreRow(_Row):
    completion: str | None = None
    completion_ids: list[int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateInput:
    """A prompt to continue; `extra` goes to the output line as it came."""

    prompt: Prompt
    params: SamplingParams
    mix: tuple[MixItem, ...]
    extra: Mapping[str, Any]
    ensemble: Ensemble | None = None
    scheduling: SchedulingParams = DEFAULT_SCHEDULING

    def request(self, tokenizer: Tokenizer) -> GenerateRequest:
        """The engine's form of it. Raises InvalidRequest if the tokenizer does not take its prompt."""
        return GenerateRequest(
            prompt_ids=prompt_ids(self.prompt, tokenizer),
            params=self.params,
            mix=self.mix,
            ensemble=self.ensemble,
            scheduling=self.scheduling,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreInput:
    """A completion to score after a prompt; `extra` goes to the output line as it came."""

    prompt: Prompt
    completion: str | Sequence[int]
    mix: tuple[MixItem, ...]
    extra: Mapping[str, Any]
    scheduling: SchedulingParams = DEFAULT_SCHEDULING

    def request(self, tokenizer: Tokenizer) -> ScoreRequest:
        """The engine's form of it. Raises InvalidRequest if the tokenizer does not take its prompt or completion."""
        prompt, completion = prompt_ids(self.prompt, tokenizer), completion_ids(self.completion, tokenizer)
        return ScoreRequest(prompt_ids=prompt, completion_ids=completion, mix=self.mix, scheduling=self.scheduling)


TARGET_KEYS = frozenset({"adapter", "mix", "ensemble"})
PROMPT_KEYS = frozenset({"prompt", "messages", "prompt_ids"})
COMPLETION_KEYS = frozenset({"completion", "completion_ids"})
SAMPLING_KEYS = frozenset(SamplingParams.model_fields)
SCHEDULING_KEYS = frozenset(SchedulingParams.model_fields)
GENERATE_KEYS = TARGET_KEYS | PROMPT_KEYS | SAMPLING_KEYS | SCHEDULING_KEYS
SCORE_KEYS = TARGET_KEYS | PROMPT_KEYS | COMPLETION_KEYS | SCHEDULING_KEYS
OUTPUT_KEYS: Mapping[Literal["generate", "score"], frozenset[str]] = {
    "generate": frozenset({"outputs", "seed", "adapter_digests", "usage", "timings"}),
    "score": frozenset({"logprobs", "greedy", "adapter_digests", "timings"}),
}
"""What the lines of an output have of their own."""


def parse_generate(fields: Mapping[str, Any]) -> GenerateInput:
    """Checks one row of `openlora generate`.

    Raises:
        InvalidRequest: names the key, what is wrong with it and what to do.
    """
    extra = _extra(fields, GENERATE_KEYS, OUTPUT_KEYS["generate"])
    row = _validate(_Row, fields)
    return GenerateInput(
        prompt=_prompt(row),
        params=sampling_params(fields),
        mix=_mix(row),
        extra=extra,
        ensemble=_ensemble(row),
        scheduling=scheduling_params(fields),
    )


def parse_score(fields: Mapping[str, Any]) -> ScoreInput:
    """Checks one row of `openlora score`.

    Raises:
        InvalidRequest: names the key, what is wrong with it and what to do.
    """
    extra = _extra(fields, SCORE_KEYS, OUTPUT_KEYS["score"])
    row = _validate(_ScoreRow, fields)
    if row.ensemble is not None:
        raise InvalidRequest("ensemble", "is for continuing a prompt; a text is scored by an adapter or a mix")
    completion: str | list[int] = _exactly_one({"completion": row.completion, "completion_ids": row.completion_ids})
    return ScoreInput(
        prompt=_prompt(row), completion=completion, mix=_mix(row), extra=extra, scheduling=scheduling_params(fields)
    )


def sampling_params(fields: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among these fields; a single stop string may stand without its list."""
    values = {key: value for key, value in fields.items() if key in SAMPLING_KEYS}
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    return _validate(SamplingParams, values)


def scheduling_params(fields: Mapping[str, Any]) -> SchedulingParams:
    """The scheduling parameters among these fields."""
    return _validate(SchedulingParams, {key: value for key, value in fields.items() if key in SCHEDULING_KEYS})


def mix_of(adapter: Adapter) -> tuple[MixItem, ...]:
    """The mix that an adapter stands for; () is the base model."""
    match adapter:
        case None:
            return ()
        case str():
            return (MixItem(adapter),)
    return tuple(MixItem(name, weight) for name, weight in adapter.items())


def ensemble(members: Sequence[Adapter], weights: Sequence[float] = (), method: Method = "mean_logits") -> Ensemble:
    """Several that continue a prompt together, in the place of an adapter: one token is chosen for all at every step.

    Args:
        members: adapters, mixes, or None for the base model; 8 at most, each takes a row of the batch.
        weights: one a member; by default they count the same.
        method: `mean_logits` combines the logits, with any weights; `mean_probs` the probabilities, with none below 0.
    """
    return Ensemble(tuple(map(mix_of, members)), tuple(weights), method)


def prompt_ids(prompt: object, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a `Prompt`: text with the tokenizer's own special tokens, messages through the chat template.

    Raises:
        InvalidRequest: it is none of these, or the tokenizer or the template does not take it.
    """
    match prompt:
        case str():
            return tuple(tokenizer.encode(prompt))
        case Mapping():
            raise InvalidRequest("prompt", "is a single message; a conversation is a list of messages: [[{...}], ...]")
        case [Mapping(), *_]:
            given = [dict(message) if isinstance(message, Mapping) else message for message in prompt]
            messages = _validate(_Messages, {"messages": given}).messages
            return tuple(tokenizer.encode_chat([message.model_dump() for message in messages]))
    return _ids("prompt", prompt)


def completion_ids(completion: object, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Text tokenised alone, without special tokens; ids as they are.

    Raises:
        InvalidRequest: it is neither, or the tokenizer does not take it.
    """
    if isinstance(completion, str):
        return tuple(tokenizer.encode(completion, special=False))
    return _ids("completion", completion)


def _ids(field: str, ids: Any) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, ids))
    except TypeError as error:
        raise InvalidRequest(field, f"{error}; give a text or a list of token ids") from error


def _prompt(row: _Row) -> Prompt:
    messages = None if row.messages is None else [message.model_dump() for message in row.messages]
    prompt: Prompt = _exactly_one({"prompt": row.prompt, "messages": messages, "prompt_ids": row.prompt_ids})
    return prompt


def _mix(row: _Row) -> tuple[MixItem, ...]:
    if row.mix is None:
        return mix_of(row.adapter)
    if row.adapter is not None:
        raise InvalidRequest("mix", "is given beside adapter; name the adapter in the mix")
    return _items(row.mix)


def _ensemble(row: _Row) -> Ensemble | None:
    if row.ensemble is None:
        return None
    if row.adapter is not None or row.mix is not None:
        raise InvalidRequest("ensemble", "is given beside adapter or mix; make that a member")
    members = (_items(member) if isinstance(member, list) else mix_of(member) for member in row.ensemble.members)
    return Ensemble(tuple(members), tuple(row.ensemble.weights), row.ensemble.method)


def _items(mix: Iterable[_Weighted]) -> tuple[MixItem, ...]:
    items = tuple(MixItem(item.adapter, item.weight) for item in mix)
    check_mix((item.adapter, item.weight) for item in items)
    return items


def _exactly_one(choices: Mapping[str, Any]) -> Any:
    given = [key for key, value in choices.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) + " are given" if given else "is missing"
        raise InvalidRequest(next(iter(choices)), f"{found}; give one of {', '.join(choices)}")
    return choices[given[0]]


def _extra(fields: Mapping[str, Any], known: frozenset[str], output: frozenset[str]) -> dict[str, Any]:
    """The keys that are carried through."""
    extra = {key: value for key, value in fields.items() if key not in known}
    for key in extra:
        if key in output:
            raise InvalidRequest(key, "is a key of the output line; give yours another name")
        if key not in GENERATE_KEYS | SCORE_KEYS and (meant := _nearest(key, known)):
            raise InvalidRequest(key, f"is not a known key; write {meant!r}, or another name if it is your own")
    return extra


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that this one is a misspelling of, if any."""
    for candidate in sorted(known):
        allowed = min(MAX_TYPO, len(candidate) // 2)
        if abs(len(key) - len(candidate)) <= allowed and edit_distance(key, candidate) <= allowed:
            return candidate
    return None


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements that turn one word into the other (Levenshtein)."""
    previous = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        current = [i]
        for j, right in enumerate(other, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def _validate(model: type[Model], values: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequest(".".join(map(str, first["loc"])), _lower(first["msg"])) from error


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
