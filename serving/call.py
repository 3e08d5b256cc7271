"""One call, from its arrival to its status.

Every handler runs inside `Gate.run`: refused while the server starts, drains or has too much to do, counted so that a
drain can wait for it, its errors mapped to a status, and one line written to the log when it ends, without a word of
its prompt.
"""

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Never, Protocol, TypeAlias, TypeVar

import grpc

from openlora_jax.errors import EngineStopped, InvalidRequest, OpenLoraError, Overloaded
from serving import status
from serving.engine import LLM
from serving.metrics import Metrics

QUICK = frozenset({"ListAdapters", "GetAdapter", "UnloadAdapter", "PinAdapter", "ServerInfo"})
"""The calls that wait for nothing: an operator's, which full load must not keep out."""
MAX_QUICK = 64
"""Of these at once."""

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request = TypeVar("Request")
Response = TypeVar("Response")
Service = TypeVar("Service", bound="Gated")


class Call:
    """What a handler knows of its call beside the request.

    Attributes:
        id: names the call in the log and in an INTERNAL status.
        llm: what answers.
        metrics: told how its request went.
        facts: for the log line; never text of a prompt or an answer.
    """

    def __init__(self, context: Context, llm: LLM, metrics: Metrics, stall: float) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.llm = llm
        self.metrics = metrics
        self.facts: dict[str, object] = {}
        self._context = context
        self._stall = stall
        self._code = "OK"

    @property
    def deadline(self) -> float | None:
        """The client's deadline in `time.monotonic()` seconds."""
        remaining = self._context.time_remaining()
        return None if remaining is None else time.monotonic() + remaining

    async def write(self, message: object) -> None:
        """Sends one message of a stream.

        Raises:
            Overloaded: the client has not read for too long.
        """
        try:
            async with asyncio.timeout(self._stall):
                await self._context.write(message)
        except TimeoutError as error:
            raise Overloaded("seconds that an answer waits for its reader", round(self._stall)) from error

    async def fail(self, failure: grpc.Status) -> Never:
        """Ends the call with a status."""
        self._code = failure.code.name
        await self._context.abort_with_status(failure)

    @contextlib.contextmanager
    def logged(self, method: str) -> Iterator[None]:
        """Counts the call and writes its one line when it is over."""
        started = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            self._code = "CANCELLED"
            raise  # grpc.aio leaks the call's memory when a handler swallows it
        finally:
            facts = " ".join(f"{name}={value!r}" for name, value in self.facts.items())
            self.metrics.called(method, self._code)
            log.info("%s %s %s %.0f ms %s", method, self.id, self._code, 1000 * (time.monotonic() - started), facts)


class Gate:
    """Lets calls in between `open` and `close`, and knows when the last one has left. For one event loop.

    No more calls are in at once, over all connections, than the engine runs and lets wait, and `MAX_QUICK` quick ones
    beside them: further ones are refused before they cost anything.

    Args:
        metrics: of the server.
        stall: how long one message of a stream may wait for its reader, in seconds.
    """

    def __init__(self, metrics: Metrics, stall: float = 30.0) -> None:
        self._metrics = metrics
        self._stall = stall
        self._llm: LLM | None = None
        self._refusal = "it is starting"
        self._live: Counter[bool] = Counter()  # quick or not -> the calls that are in
        self._empty = asyncio.Event()
        self._empty.set()

    def open(self, llm: LLM) -> None:
        self._llm = llm

    def close(self) -> None:
        """From now on calls are refused; those that are in go on."""
        self._llm, self._refusal = None, "it is shutting down"

    async def drained(self, seconds: float) -> bool:
        """Waits until no call is left, for so long at most; whether none is left."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def run(self, method: str, context: Context, handler: Callable[[Call], Awaitable[Response]]) -> Response:
        """Runs a handler and returns its response, or ends the call with the status of its error."""
        if self._llm is None:
            await self._refuse(method, context, EngineStopped(self._refusal))
        quick = method in QUICK
        most = MAX_QUICK if quick else self._llm.config.max_queue + self._llm.config.max_rows
        if self._live[quick] >= most:
            await self._refuse(method, context, Overloaded("calls in progress", most))
        call = Call(context, self._llm, self._metrics, self._stall)
        with self._counted(quick), call.logged(method):
            try:
                return await handler(call)
            except OpenLoraError as error:
                call.facts["error"] = _reason(error)
                return await call.fail(status.to_status(error))
            except Exception:  # ours, not the caller's: its text stays in the log
                log.exception("%s %s failed", method, call.id)
                return await call.fail(status.internal(call.id))

    async def _refuse(self, method: str, context: Context, error: OpenLoraError) -> Never:
        refusal = status.to_status(error)
        self._metrics.called(method, refusal.code.name)
        await context.abort_with_status(refusal)

    @contextlib.contextmanager
    def _counted(self, quick: bool) -> Iterator[None]:
        self._live[quick] += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._live[quick] -= 1
            if not self._live.total():
                self._empty.set()


def _reason(error: OpenLoraError) -> str:
    """What the log says of an error. Of messages the field alone: a chat template refuses them in words of its own."""
    return error.field if isinstance(error, InvalidRequest) and error.field == "messages" else str(error)


class Gated(Protocol):
    gate: Gate


def rpc(
    handler: Callable[[Service, Request, Call], Awaitable[Response]],
) -> Callable[[Service, Request, Context], Awaitable[Response]]:
    """Makes a gRPC method of a handler that takes (request, call): it runs inside the service's gate."""

    @functools.wraps(handler)
    async def method(service: Service, request: Request, context: Context) -> Response:
        return await service.gate.run(handler.__name__, context, lambda call: handler(service, request, call))

    return method
