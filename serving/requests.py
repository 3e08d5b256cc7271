"""Messages of the wire into requests of the library. No I/O, no waiting.

What the wire alone needs is checked here: sizes, before anything is made of them, and fields that are absent. What
holds for every caller (vocabulary, context length, weights) the engine checks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from openlora_jax import inputs
from openlora_jax.adapters.mixes import MAX_MIX
from openlora_jax.engine.request import MixItem
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import GenerateInput, Prompt, ScoreInput
from serving.proto import openlora_pb2 as pb

PRIORITIES: Mapping[int, str] = {pb.PRIORITY_LOW: "low", pb.PRIORITY_NORMAL: "normal", pb.PRIORITY_HIGH: "high"}

MAX_NAME = 128
MAX_CHARACTERS_PER_TOKEN = 128
"""No tokenizer has longer tokens: a text of more characters than this times the context length cannot fit."""


def generate_input(request: pb.GenerateRequest, max_len: int) -> GenerateInput:
    """What a generation asks for, in a context of `max_len` tokens.

    Raises:
        InvalidRequest: names the field.
    """
    return GenerateInput(params=sampling_params(request.sampling), **_common(request, max_len))


def score_input(request: pb.ScoreRequest, max_len: int) -> ScoreInput:
    """What a scoring asks for, in a context of `max_len` tokens.

    Raises:
        InvalidRequest: names the field.
    """
    completion: str | tuple[int, ...]
    match request.WhichOneof("scored"):
        case "completion":
            completion = _text(request.completion, "completion", max_len)
        case "completion_ids":
            completion = _ids(request.completion_ids, "completion_ids", max_len)
        case _:
            raise InvalidRequest("completion", "is missing; give completion or completion_ids")
    return ScoreInput(completion=completion, **_common(request, max_len))


def _common(request: pb.GenerateRequest | pb.ScoreRequest, max_len: int) -> dict[str, Any]:
    """What both kinds have."""
    return {
        "prompt": prompt(request.prompt, max_len),
        "mix": mix(request),
        "extra": {},
        "scheduling": scheduling_params(request.scheduling),
    }


def sampling_params(message: pb.SamplingParams) -> SamplingParams:
    """The fields that are set; the others keep their defaults. Raises InvalidRequest."""
    return inputs.sampling_params({field.name: _plain(value) for field, value in message.ListFields()})


def scheduling_params(message: pb.SchedulingParams) -> SchedulingParams:
    """The fields that are set; the others keep their defaults. Raises InvalidRequest."""
    fields = {field.name: value for field, value in message.ListFields()}
    if message.priority:
        fields["priority"] = PRIORITIES.get(message.priority, message.priority)
    return inputs.scheduling_params(fields)


def _plain(value: object) -> object:
    match value:
        case Mapping():
            return dict(value)
        case Sequence() if not isinstance(value, str):
            return tuple(value)
        case _:
            return value


def mix(request: pb.GenerateRequest | pb.ScoreRequest) -> tuple[MixItem, ...]:
    """The adapters that a request names: none, one of weight 1, or a mix.

    Raises:
        InvalidRequest: an empty mix, too many members, or a name that no adapter can have.
    """
    match request.WhichOneof("target"):
        case None:
            return ()
        case "adapter":
            return (MixItem(adapter_name(request.adapter, "adapter")),)
    items = request.mix.items
    if not 1 <= len(items) <= MAX_MIX:
        raise InvalidRequest(
            "mix.items", f"has {len(items)} members; give 1 to {MAX_MIX}, or no mix for the base model"
        )
    return tuple(
        MixItem(adapter_name(item.adapter, f"mix.items.{i}.adapter"), item.weight if item.HasField("weight") else 1.0)
        for i, item in enumerate(items)
    )


def adapter_name(name: str, field: str = "name") -> str:
    """The name itself.

    Raises:
        InvalidRequest: it is empty or too long to be one.
    """
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidRequest(field, f"is {len(name)} characters long; an adapter's name has 1 to {MAX_NAME}")
    return name


def prompt(message: pb.Prompt, max_len: int) -> Prompt:
    """Text, messages or ids. Raises InvalidRequest if there are none, or more than can fit `max_len` tokens."""
    match message.WhichOneof("prompt"):
        case "text":
            return _text(message.text, "prompt.text", max_len)
        case "token_ids":
            return _ids(message.token_ids, "prompt.token_ids", max_len)
        case "chat":
            return _messages(message.chat.messages, max_len)
    raise InvalidRequest("prompt", "is missing; give text, chat or token_ids")


def _messages(turns: Sequence[pb.ChatMessage], max_len: int) -> list[dict[str, str]]:
    if not 1 <= len(turns) <= max_len:
        problem = f"has {len(turns)} messages; give at least one, and no more than {max_len} tokens hold"
        raise InvalidRequest("prompt.chat", problem)
    _check_characters(sum(len(turn.role) + len(turn.content) for turn in turns), "prompt.chat", max_len)
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _text(text: str, field: str, max_len: int) -> str:
    _check_characters(len(text), field, max_len)
    return text


def _ids(message: pb.TokenIds, field: str, max_len: int) -> tuple[int, ...]:
    if len(message.ids) > max_len:
        raise InvalidRequest(field, f"has {len(message.ids)} ids; the context holds {max_len} tokens")
    return tuple(message.ids)


def _check_characters(count: int, field: str, max_len: int) -> None:
    if count > max_len * MAX_CHARACTERS_PER_TOKEN:
        raise InvalidRequest(field, f"has {count} characters; the context holds {max_len} tokens")
