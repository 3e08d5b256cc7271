"""The life of the server: bind, answer health checks, build what it serves, serve, drain, leave.

It binds first, so that a taken port is known at once and probes find NOT_SERVING while programs compile. At SIGTERM it
says NOT_SERVING, refuses new calls with UNAVAILABLE, lets those in progress finish within the grace, ends the rest with
UNAVAILABLE and returns. A second signal ends the process at once. When the engine ends by itself, the server leaves in
the same way, with an error.
"""

import asyncio
import signal
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from openlora_jax.errors import EngineStopped, InvalidConfig
from serving.call import Gate
from serving.engine import LLM
from serving.loopback import loopback
from serving.metrics import Metrics, exposed
from serving.proto import openlora_pb2 as pb
from serving.proto import openlora_pb2_grpc as pb_grpc
from serving.service import OpenLoraService

SERVICE = pb.DESCRIPTOR.services_by_name["OpenLora"].full_name
LAST_WORDS_SECONDS = 2.0
"""For the statuses of ended calls to reach their clients."""

OPTIONS = (
    ("grpc.so_reuseport", 0),  # else two servers share one port in silence
    ("grpc.max_receive_message_length", 4 * 1024**2),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)


class Server:
    """One listening port, and what answers on it. For one event loop.

    Args:
        listen: loopback HOST:PORT; port 0 picks a free one.
        stall: how long a message of a stream may wait for its reader, in seconds.

    Attributes:
        metrics: of what it serves.

    Raises:
        InvalidConfig: `listen` is no loopback address.
    """

    def __init__(self, listen: str, stall: float = 30.0) -> None:
        self._host, self._port = loopback("listen", listen)
        self.metrics = Metrics()
        self._gate = Gate(self.metrics, stall)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS)
        pb_grpc.add_OpenLoraServicer_to_server(OpenLoraService(self._gate), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), self._server
        )

    async def start(self) -> str:
        """Binds and answers, but NOT_SERVING. Returns the address, with the port that 0 became.

        Raises:
            InvalidConfig: the address cannot be bound.
        """
        try:
            bound = self._server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            await self._server.start()  # grpc.aio closes only a server that was started
            await self._server.stop(None)
            problem = f"{self._host}:{self._port} cannot be bound; is another server running there?"
            raise InvalidConfig("listen", problem) from error
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        return f"{self._host}:{bound}"

    async def open(self, llm: LLM) -> None:
        """Begins to serve."""
        self.metrics.observe(llm)
        self._gate.open(llm)
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self, grace: float) -> bool:
        """Refuses new calls and waits for the others; whether all ended within `grace` seconds."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._gate.close()
        return await self._gate.drained(grace)

    async def stop(self) -> None:
        """Closes the port; what is still running is cancelled after a moment."""
        await self._server.stop(LAST_WORDS_SECONDS)

    async def _say(self, status: int) -> None:
        """To health probes, those that name the service and those that name none."""
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def serve(
    build: Callable[[], LLM],
    listen: str,
    metrics: str | None = None,
    *,
    grace: float,
    announce: Callable[[str], None],
) -> None:
    """Serves what `build` returns until SIGTERM or SIGINT, or until its engine fails.

    Args:
        build: makes the library, programs compiled; called once, on another thread.
        listen: loopback HOST:PORT; port 0 picks a free one.
        metrics: the same for metrics over HTTP, from the start to the end; None for none.
        grace: how long calls in progress may go on after the signal, in seconds.
        announce: told the address once it is served.

    Raises:
        InvalidConfig: an address cannot be served on.
        EngineStopped: the engine has ended by itself.
        OpenLoraError: what `build` raises.
    """
    server = Server(listen)
    address = await server.start()
    try:
        with exposed(server.metrics, metrics):
            llm = await asyncio.to_thread(build)
            await server.open(llm)
            announce(address)
            await _until_it_ends(server, llm, grace)
    finally:
        await server.stop()


async def _until_it_ends(server: Server, llm: LLM, grace: float) -> None:
    """Waits for a signal or the engine's end, then drains; raises EngineStopped where the engine ended by itself."""
    ended, leaving = llm.engine.ended, _first_signal()
    loop = asyncio.get_running_loop()
    ended.add_done_callback(lambda _: loop.call_soon_threadsafe(leaving.set))
    await leaving.wait()
    failure = ended.result() if ended.done() else None
    finished = await server.drain(grace)
    await asyncio.to_thread(llm.close)
    if not finished:
        await server.drain(LAST_WORDS_SECONDS)
    if failure:
        raise EngineStopped(failure)


def _first_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second one does what the system does by default."""
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return signalled
