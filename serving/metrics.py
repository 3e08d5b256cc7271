"""Prometheus metrics of one server, over HTTP.

What calls and requests come to is counted here; what the engine and the adapters count themselves is read at each
scrape. No series has an adapter's name or a tenant's: there may be thousands. `openlora top` shows adapters one by one.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from openlora_jax.engine.request import Timings
from openlora_jax.engine.scheduling_params import Priority
from openlora_jax.errors import InvalidConfig
from serving import readings
from serving.engine import LLM
from serving.loopback import loopback

BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds in seconds, from one decode step to a long answer."""

log = logging.getLogger(__name__)


class Metrics(Collector):
    """Any thread.

    Attributes:
        registry: what a scrape reads; no other server's numbers are in it.
    """

    def __init__(self) -> None:
        self._llm: LLM | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._calls = Counter(
            "openlora_calls", "Calls that ended, by gRPC status.", ("method", "code"), registry=self.registry
        )
        self._requests = Counter(
            "openlora_requests", "Requests that were admitted, by class.", ("priority",), registry=self.registry
        )
        self._seconds = Histogram(
            "openlora_request_seconds",
            "Time of answered requests: load (until their adapters are in host memory), queue, prefill, decode.",
            ("phase",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._first = Histogram(
            "openlora_time_to_first_token_seconds",
            "From the submission of a request to its first result.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._adapters = Histogram(
            "openlora_adapter_wait_seconds",
            "Of the time before the first result, what requests waited for adapters:"
            " until they are in host memory (load), and then for room on the device (room).",
            ("cause",),
            buckets=BUCKETS,
            registry=self.registry,
        )

    def observe(self, llm: LLM) -> None:
        """From now on a scrape also reads what this library counts."""
        self._llm = llm

    def called(self, method: str, code: str) -> None:
        """A call has ended with a status."""
        self._calls.labels(method, code).inc()

    def admitted(self, priority: Priority) -> None:
        """A request of this class waits or runs."""
        self._requests.labels(priority).inc()

    def answered(self, timings: Timings) -> None:
        """A request has got its whole answer."""
        for phase in ("load", "queue", "prefill", "decode"):
            self._seconds.labels(phase).observe(getattr(timings, phase))
        self._first.observe(timings.load + timings.queue + timings.prefill)
        self._adapters.labels("load").observe(timings.load)
        self._adapters.labels("room").observe(timings.room)

    def collect(self) -> Iterable[Metric]:
        """What is read, and not counted here; for the registry."""
        yield readings.serving(self._llm is not None)
        if self._llm is not None:
            yield from readings.library(self._llm)


@contextmanager
def exposed(metrics: Metrics, listen: str | None) -> Iterator[None]:
    """Answers scrapes on loopback HOST:PORT while the block runs, on a thread of its own; None answers none.

    Raises:
        InvalidConfig: the address cannot be served on.
    """
    if listen is None:
        yield
        return
    host, port = loopback("metrics", listen)
    try:
        server, thread = start_http_server(port, host.strip("[]"), metrics.registry)
    except OSError as error:
        raise InvalidConfig("metrics", f"{listen} cannot be bound: {error.strerror}") from error
    log.info("metrics on http://%s:%d/metrics", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
