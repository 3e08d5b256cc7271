"""Messages of the wire into requests of the engine, and the engine's events into messages. No I/O, no waiting.

What the wire alone needs is checked here: sizes, before anything is made of them, and fields that are absent. What
holds for every caller (vocabulary, context length, weights) the engine checks.
"""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from openlora_jax.engine.admission import MAX_MIX
from openlora_jax.engine.request import Delta, Finished, MixItem, Scored, Timings, TokenLogprobs
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.errors import InvalidRequest
from serving.engine import Tokenizer
from serving.proto import openlora_pb2 as pb

MAX_NAME = 128
MAX_CHARACTERS_PER_TOKEN = 128
"""No tokenizer has longer tokens: a text of more characters than this times the context length cannot fit."""

FINISH_REASONS: Mapping[str | None, pb.FinishReason] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}


def sampling_params(message: pb.SamplingParams) -> SamplingParams:
    """The fields that are set; the others keep their defaults.

    Raises:
        InvalidRequest: names the first field out of range.
    """
    values: dict[str, object] = {field.name: _plain(value) for field, value in message.ListFields()}
    try:
        return SamplingParams.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequest(".".join(["sampling", *map(str, first["loc"])]), first["msg"]) from error


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


def prompt_ids(prompt: pb.Prompt, tokenizer: Tokenizer, max_len: int) -> tuple[int, ...]:
    """The prompt's token ids.

    Raises:
        InvalidRequest: no prompt, or one that cannot fit `max_len` tokens.
    """
    match prompt.WhichOneof("prompt"):
        case "text":
            return text_ids(prompt.text, "prompt.text", tokenizer, max_len, special=True)
        case "token_ids":
            return given_ids(prompt.token_ids, "prompt.token_ids", max_len)
        case "chat":
            return chat_ids(prompt.chat.messages, tokenizer, max_len)
    raise InvalidRequest("prompt", "is missing; give text, chat or token_ids")


def completion_ids(request: pb.ScoreRequest, tokenizer: Tokenizer, max_len: int) -> tuple[int, ...]:
    """The completion's token ids.

    Raises:
        InvalidRequest: no completion, or one that cannot fit `max_len` tokens.
    """
    match request.WhichOneof("scored"):
        case "completion":
            return text_ids(request.completion, "completion", tokenizer, max_len, special=False)
        case "completion_ids":
            return given_ids(request.completion_ids, "completion_ids", max_len)
    raise InvalidRequest("completion", "is missing; give completion or completion_ids")


def chat_ids(turns: Sequence[pb.ChatMessage], tokenizer: Tokenizer, max_len: int) -> tuple[int, ...]:
    if not 1 <= len(turns) <= max_len:
        raise InvalidRequest(
            "prompt.chat", f"has {len(turns)} messages; give at least one, and what {max_len} tokens hold"
        )
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    _check_characters(sum(len(turn["role"]) + len(turn["content"]) for turn in messages), "prompt.chat", max_len)
    return tuple(tokenizer.encode_chat(messages))


def text_ids(text: str, field: str, tokenizer: Tokenizer, max_len: int, *, special: bool) -> tuple[int, ...]:
    _check_characters(len(text), field, max_len)
    return tuple(tokenizer.encode(text, special))


def given_ids(message: pb.TokenIds, field: str, max_len: int) -> tuple[int, ...]:
    if len(message.ids) > max_len:
        raise InvalidRequest(field, f"has {len(message.ids)} ids; the context holds {max_len} tokens")
    return tuple(message.ids)


def _check_characters(count: int, field: str, max_len: int) -> None:
    if count > max_len * MAX_CHARACTERS_PER_TOKEN:
        raise InvalidRequest(field, f"has {count} characters; the context holds {max_len} tokens")


# ---- The engine's events ----


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
    return pb.Timings(queue=times.queue, load=times.load, prefill=times.prefill, decode=times.decode)


def append(output: pb.Output, event: Delta) -> None:
    """Adds one delta to the sample that it belongs to."""
    output.text += event.text
    output.token_ids.extend(event.token_ids)
    output.logprobs.extend(token_logprobs(token) for token in event.logprobs)
    output.finish_reason = FINISH_REASONS[event.finish_reason]
