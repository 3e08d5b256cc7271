"""The Python client: the RPCs under Python's names, with the library's own errors.

    with Client("127.0.0.1:50051") as client:
        response = client.generate("The sea is", SamplingParams(max_tokens=32), adapter="pirate")
        print(response.outputs[0].text, response.adapter_digests)

Answers are the messages of `openlora.proto`. A prompt is text, a conversation (`[{"role": ..., "content": ...}]`) or
token ids. An adapter is a name, a mix (`{name: weight}`, or MixItems), None for the base model, or, to generate, an
`openlora_jax.ensemble` of these. `timeout` is in seconds; the server knows it, and drops the request when it passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from openlora_jax.engine.request import Ensemble, MixItem
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import Adapter, Prompt
from serving import status
from serving.proto import openlora_pb2 as pb
from serving.proto import openlora_pb2_grpc as pb_grpc

MAX_ANSWER = 64 * 1024**2
"""Bytes of a message: many samples with all their alternatives are more than gRPC's own limit of 4 MiB."""

Target = Adapter | Sequence[MixItem]
AnyTarget = Target | Ensemble
Answer = TypeVar("Answer")
Built = TypeVar("Built", bound=Message)


class Client:
    """A connection to one server. Thread-safe. Every method raises an OpenLoraError when the call fails.

    Args:
        address: HOST:PORT.
        timeout: of every call that is not given its own, in seconds; None waits for ever.
    """

    def __init__(self, address: str, timeout: float | None = None) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", MAX_ANSWER)])
        self._stub = pb_grpc.OpenLoraStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        adapter: AnyTarget = None,
        scheduling: SchedulingParams | None = None,
        timeout: float | None = None,
    ) -> pb.GenerateResponse:
        """Continues a prompt and waits for the whole answer."""
        request = generate_request(prompt, params, adapter, scheduling)
        return self._call(self._stub.Generate, request, pb.GenerateResponse, timeout)

    def generate_stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        adapter: AnyTarget = None,
        scheduling: SchedulingParams | None = None,
        timeout: float | None = None,
    ) -> Iterator[pb.GenerateEvent]:
        """Continues a prompt and yields its tokens as they come; closing the iterator ends the request."""
        request = generate_request(prompt, params, adapter, scheduling)
        call = self._stub.GenerateStream(request, timeout=self._or_default(timeout))
        try:
            with _own_errors():
                yield from call
        finally:
            call.cancel()

    def score(
        self,
        prompt: Prompt,
        completion: str | Sequence[int],
        *,
        adapter: Target = None,
        scheduling: SchedulingParams | None = None,
        timeout: float | None = None,
    ) -> pb.ScoreResponse:
        """The log-probability of each token of `completion` after `prompt`."""
        request = score_request(prompt, completion, adapter, scheduling)
        return self._call(self._stub.Score, request, pb.ScoreResponse, timeout)

    def list_adapters(self, page_size: int = 0, *, in_memory: bool = False) -> Iterator[pb.Adapter]:
        """Every registered adapter, or those in memory alone, by name, fetched a page at a time."""
        request = pb.ListAdaptersRequest(page_size=page_size, in_memory=in_memory)
        while True:
            page: pb.ListAdaptersResponse = self._call(self._stub.ListAdapters, request, pb.ListAdaptersResponse)
            yield from page.adapters
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def get_adapter(self, name: str) -> pb.Adapter:
        """One registered adapter."""
        return self._call(self._stub.GetAdapter, pb.GetAdapterRequest(name=name), pb.Adapter)

    def load_adapter(self, name: str) -> pb.Adapter:
        """Reads a registered adapter into host memory, and waits for it."""
        return self._call(self._stub.LoadAdapter, pb.LoadAdapterRequest(name=name), pb.Adapter)

    def unload_adapter(self, name: str) -> pb.Adapter:
        """Unpins an adapter and frees its memory, with its last request if it has some; it stays registered."""
        return self._call(self._stub.UnloadAdapter, pb.UnloadAdapterRequest(name=name), pb.Adapter)

    def pin_adapter(self, name: str, pinned: bool = True) -> pb.Adapter:
        """Keeps an adapter on the device from its next request on, or lets it go again."""
        return self._call(self._stub.PinAdapter, pb.PinAdapterRequest(name=name, pinned=pinned), pb.Adapter)

    def server_info(self) -> pb.ServerInfoResponse:
        """What the server serves, its limits, and what it does now."""
        return self._call(self._stub.ServerInfo, pb.ServerInfoRequest(), pb.ServerInfoResponse)

    def _call(
        self, method: Callable[..., object], request: Message, kind: type[Answer], timeout: float | None = None
    ) -> Answer:
        with _own_errors():
            answer = method(request, timeout=self._or_default(timeout))
        return cast(Answer, answer)

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout


def generate_request(
    prompt: Prompt, params: SamplingParams | None, adapter: AnyTarget, scheduling: SchedulingParams | None = None
) -> pb.GenerateRequest:
    """The message of a generation; of `params`, what was set is sent.

    Raises:
        InvalidRequest: something that no message can hold.
    """
    fields = params.model_dump(exclude_unset=True, exclude_none=True) if params else {}
    sampling = _build("sampling", pb.SamplingParams, **fields)
    request = pb.GenerateRequest(prompt=_prompt(prompt), sampling=sampling, scheduling=_scheduling(scheduling))
    if isinstance(adapter, Ensemble):
        request.ensemble.CopyFrom(_ensemble(adapter))
    else:
        name, mix = _target(adapter)
        request.MergeFrom(pb.GenerateRequest(adapter=name, mix=mix))
    return request


def score_request(
    prompt: Prompt, completion: str | Sequence[int], adapter: Target, scheduling: SchedulingParams | None = None
) -> pb.ScoreRequest:
    """The message of a scoring.

    Raises:
        InvalidRequest: something that no message can hold.
    """
    name, mix = _target(adapter)
    request = pb.ScoreRequest(prompt=_prompt(prompt), adapter=name, mix=mix, scheduling=_scheduling(scheduling))
    if isinstance(completion, str):
        request.completion = completion
    else:
        request.completion_ids.CopyFrom(_build("completion", pb.TokenIds, ids=completion))
    return request


def _scheduling(params: SchedulingParams | None) -> pb.SchedulingParams | None:
    if params is None:
        return None
    fields = params.model_dump(exclude_unset=True, exclude_none=True)
    if "priority" in fields:
        fields["priority"] = f"PRIORITY_{params.priority.upper()}"
    return _build("scheduling", pb.SchedulingParams, **fields)


def _prompt(prompt: Prompt) -> pb.Prompt:
    if isinstance(prompt, str):
        return _build("prompt", pb.Prompt, text=prompt)
    if prompt and isinstance(prompt[0], Mapping):
        messages = [
            _build("prompt", pb.ChatMessage, **message) for message in cast(Sequence[Mapping[str, str]], prompt)
        ]
        return pb.Prompt(chat=pb.Chat(messages=messages))
    return pb.Prompt(token_ids=_build("prompt", pb.TokenIds, ids=prompt))


def _target(adapter: Target) -> tuple[str | None, pb.Mix | None]:
    match adapter:
        case None | str():
            return adapter, None
        case Mapping():
            members = list(adapter.items())
        case _:
            members = [(item.adapter, item.weight) for item in adapter]
    items = [_build("mix", pb.MixItem, adapter=name, weight=weight) for name, weight in members]
    return None, pb.Mix(items=items) if items else None


def _ensemble(ensemble: Ensemble) -> pb.Ensemble:
    targets = map(_target, ensemble.members)
    return _build(
        "ensemble",
        pb.Ensemble,
        members=[pb.EnsembleMember(adapter=name, mix=mix) for name, mix in targets],
        weights=ensemble.weights,
        method=f"ENSEMBLE_METHOD_{ensemble.method.upper()}",
    )


def _build(field: str, kind: type[Built], **values: object) -> Built:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(field, f"cannot be sent: {error}") from error


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as failure:
        raise status.to_error(failure) from failure
