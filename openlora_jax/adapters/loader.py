"""Loader threads: each digest is read once at a time, in the order of the requests, and not at once after a failure."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from openlora_jax.adapters.counters import Counters

T = TypeVar("T")

STOPPED = "the loader has stopped"
"""Why nothing is read any more."""


class Loader(Generic[T]):
    """Runs `read(digest)` and then `done(digest, result or the exception)` on its threads.

    `read` and `done` are called without a lock; every method is called under the owner's, `finish` from within `done`.

    Attributes:
        retry_after: seconds during which a digest that failed is not read again, so that a flood of requests for it
            costs one read.
    """

    def __init__(
        self,
        read: Callable[[str], T],
        done: Callable[[str, T | Exception], None],
        threads: int,
        retry_after: float,
        clock: Callable[[], float] = time.monotonic,
        counters: Counters | None = None,
    ) -> None:
        self.retry_after = retry_after
        self._read = read
        self._done = done
        self._clock = clock
        self._counters = counters or Counters(clock)
        self._threads = threads
        self._stopped = False
        self._executor = ThreadPoolExecutor(threads, "adapter-loader")
        self._pending: OrderedDict[str, bool] = OrderedDict()  # digest -> whether it may start without room
        self._asked: dict[str, float] = {}  # digest -> when its pending read was requested
        self._running: set[str] = set()
        self._failures: dict[str, tuple[float, str]] = {}  # digest -> when it may be tried again, why it failed

    def request(self, digest: str, *, again: bool = False) -> None:
        """Queues a read unless one is queued or running.

        Args:
            digest: of the adapter.
            again: it was loaded for a request that still waits: ahead of the others, and whether or not there is room.
        """
        if digest not in self._running:
            self._pending[digest] = self._pending.get(digest, False) or again
            self._asked.setdefault(digest, self._clock())
            if again:
                self._pending.move_to_end(digest, last=False)

    def cancel(self, digest: str) -> None:
        """Takes back a request whose read has not begun."""
        if self._pending.pop(digest, None) is not None:
            del self._asked[digest]
            self._counters.not_loaded("cancelled")

    def start(self, *, urgent: Collection[str], room: bool) -> None:
        """Begins reads on idle threads: what is `urgent` first; without room in host memory, only what needs none."""
        while not self._stopped and len(self._running) < self._threads:
            digest = self._next(urgent, room)
            if digest is None:
                return
            del self._pending[digest]
            self._counters.waited(self._clock() - self._asked.pop(digest))
            self._running.add(digest)
            self._executor.submit(self._run, digest)

    def finish(self, digest: str, failure: str | None) -> None:
        """Notes the end of a read."""
        self._running.discard(digest)
        now = self._clock()
        self._failures = {key: entry for key, entry in self._failures.items() if entry[0] > now}
        if failure is not None:
            self._failures[digest] = (now + self.retry_after, failure)

    def refusal(self, digest: str) -> str | None:
        """Why a digest is not to be read now: its last failure, while it is fresh."""
        if self._stopped:
            return STOPPED
        until, failure = self._failures.get(digest, (0.0, None))
        return failure if self._clock() < until else None

    def stop(self) -> None:
        """Forgets what has not begun and begins nothing else."""
        self._stopped = True
        self._pending.clear()
        self._asked.clear()

    def join(self) -> None:
        """Waits for what has begun. Called without the owner's lock, which `done` takes."""
        self._executor.shutdown(wait=True)

    def _next(self, urgent: Collection[str], room: bool) -> str | None:
        for digest in urgent:
            if digest in self._pending:
                return digest
        first, again = next(iter(self._pending.items()), (None, False))
        return first if room or again else None

    def _run(self, digest: str) -> None:
        result: T | Exception
        try:
            result = self._read(digest)
        except Exception as error:  # whatever is wrong with one adapter concerns those who wait for it, and nobody else
            result = error
        self._done(digest, result)
