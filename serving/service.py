# ruff: noqa: N802 (methods bear the names of the proto's RPCs)
"""The RPCs of `openlora.v1.OpenLora`: a request becomes a call of the library, and what comes back becomes messages.

What takes a while (tokenising, listing, loading) runs off the event loop. Submitting does not: it takes short locks and
looks at the registry file, which is read again only where it has grown.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from openlora_jax import __version__
from openlora_jax.engine.request import Delta, Finished, GenerateRequest, Scored, ScoreRequest
from openlora_jax.errors import Overloaded
from openlora_jax.inputs import Tokenizer
from serving import requests, responses
from serving.call import Call, Gate, rpc
from serving.catalog import Catalog
from serving.engine import LLM, EventStream
from serving.proto import openlora_pb2 as pb

LOAD_THREADS = 4
"""LoadAdapter calls that wait for their adapter at the same time; further ones queue."""


Message = TypeVar("Message")
Request = TypeVar("Request", GenerateRequest, ScoreRequest)
Made = TypeVar("Made", covariant=True)


class Input(Protocol[Made]):
    """What a message asks for, not tokenised yet."""

    def request(self, tokenizer: Tokenizer) -> Made: ...


class OpenLoraService:
    """Implements every RPC of the proto's service.

    Args:
        gate: lets calls in once there is a library to serve them.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._catalog = Catalog()
        # Threads of their own, not to hold up the tokenising: loads wait, and the first looks read every manifest.
        self._loads = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="load")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="look")

    @rpc
    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        generate = await _tokenised(requests.generate_input, request, call)
        outputs = [pb.Output() for _ in range(generate.params.n)]
        with _submitted(generate, call) as stream:
            async for event in stream:
                match event:
                    case Delta():
                        responses.append(outputs[event.index], event)
                    case Finished():
                        return responses.response(outputs, _finished(event, call))
        raise RuntimeError("the stream has ended without its last event")

    @rpc
    async def GenerateStream(self, request: pb.GenerateRequest, call: Call) -> None:
        generate = await _tokenised(requests.generate_input, request, call)
        with _submitted(generate, call) as stream:
            async for event in stream:
                match event:
                    case Delta():
                        await call.write(pb.GenerateEvent(delta=responses.delta(event)))
                    case Finished():
                        return await call.write(pb.GenerateEvent(finished=_finished(event, call)))
        raise RuntimeError("the stream has ended without its last event")

    @rpc
    async def Score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        score = await _tokenised(requests.score_input, request, call)
        with _submitted(score, call) as stream:
            async for event in stream:
                if isinstance(event, Scored):
                    call.facts |= {"prompt": len(score.prompt_ids), "completion": len(score.completion_ids)}
                    call.metrics.answered(event.timings)
                    return responses.scored(event)
        raise RuntimeError("the stream has ended without its last event")

    @rpc
    async def ListAdapters(self, request: pb.ListAdaptersRequest, call: Call) -> pb.ListAdaptersResponse:
        return await asyncio.get_running_loop().run_in_executor(
            self._looks, self._catalog.page, call.llm, request.page_size, request.page_token, request.in_memory
        )

    @rpc
    async def GetAdapter(self, request: pb.GetAdapterRequest, call: Call) -> pb.Adapter:
        return await _adapter(request.name, call, self._catalog.get, self._looks)

    @rpc
    async def LoadAdapter(self, request: pb.LoadAdapterRequest, call: Call) -> pb.Adapter:
        given_up = threading.Event()  # by a client that cancels, or whose deadline passes: no thread waits on for it
        try:
            return await _adapter(request.name, call, partial(self._catalog.load, given_up=given_up), self._loads)
        finally:
            given_up.set()

    @rpc
    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, call: Call) -> pb.Adapter:
        return await _adapter(request.name, call, self._catalog.unload, self._looks)

    @rpc
    async def PinAdapter(self, request: pb.PinAdapterRequest, call: Call) -> pb.Adapter:
        pinned = request.pinned or not request.HasField("pinned")
        return await _adapter(request.name, call, partial(self._catalog.pin, pinned=pinned), self._looks)

    @rpc
    async def ServerInfo(self, request: pb.ServerInfoRequest, call: Call) -> pb.ServerInfoResponse:
        llm = call.llm
        stats, memory = llm.engine.stats, llm.adapters.memory()
        return pb.ServerInfoResponse(
            version=__version__,
            base_digest=llm.base_digest,
            vocab_size=llm.model.vocab_size,
            max_model_len=llm.config.max_model_len,
            max_rows=llm.config.max_rows,
            max_queue=llm.config.max_queue,
            backend=llm.backend,
            running=stats.running,
            waiting=stats.waiting,
            free_kv_blocks=stats.free_kv_blocks,
            kv_blocks=stats.kv_blocks,
            generated_tokens=stats.generated_tokens,
            preemptions=stats.preemptions,
            free_pages=sum(pages.get("free", 0) for pages in memory.pages.values()),
            pages=sum(sum(pages.values()) for pages in memory.pages.values()),
            host_bytes=memory.host_bytes,
            host_budget=memory.host_budget,
            adapters=len(llm.store.registrations()),
        )


@contextmanager
def _submitted(request: GenerateRequest | ScoreRequest, call: Call) -> Iterator[EventStream]:
    """The request's events. However the caller leaves, the request is cancelled: no call can leave one behind."""
    call.facts["adapters"] = [item.adapter for mix in request.mixes for item in mix]
    stream = call.llm.engine.submit(request)
    try:
        call.metrics.admitted(request.scheduling.priority)
        yield stream
    finally:
        stream.cancel()


def _refuse_if_full(llm: LLM) -> None:
    """What the engine would say, before the prompt is tokenised."""
    if llm.engine.stats.waiting >= llm.config.max_queue:
        raise Overloaded("waiting requests", llm.config.max_queue)


async def _tokenised(make: Callable[[Message, int], Input[Request]], request: Message, call: Call) -> Request:
    """The engine's form of a request, made without holding the others up."""
    _refuse_if_full(call.llm)
    work = make(request, call.llm.config.max_model_len)
    return replace(await asyncio.to_thread(work.request, call.llm.tokenizer), deadline=call.deadline)


def _finished(event: Finished, call: Call) -> pb.Finished:
    call.facts |= {"prompt": event.prompt_tokens, "completion": event.completion_tokens}
    call.metrics.answered(event.timings)
    return responses.finished(event)


async def _adapter(name: str, call: Call, action: Callable[[LLM, str], pb.Adapter], threads: Executor) -> pb.Adapter:
    call.facts["adapter"] = requests.adapter_name(name)
    return await asyncio.get_running_loop().run_in_executor(threads, action, call.llm, name)
