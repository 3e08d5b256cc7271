"""Loader threads: each digest is read once at a time, in the order of the requests; a read that hangs is given up."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from openlora_jax.adapters.counters import Counters

T = TypeVar("T")

GRACE = 1.0
"""Seconds that threads have to end when nothing is read any more."""


@dataclass(slots=True)
class Reading:
    """A read that has begun.

    Attributes:
        began: when.
        ahead: nobody had asked for it then.
        unloaded: what it yields is for those alone who wait for it.
    """

    began: float
    ahead: bool = False
    unloaded: bool = False


class Loader(Generic[T]):
    """Runs `read(digest)` and then `done(digest, result or the exception)` on its threads.

    `read` and `done` are called without a lock; every method is called under the owner's, `finish` from within `done`.
    A read that takes longer than `timeout` *hangs*: no power ends its thread, so another one takes its place, until as
    many hang as read together. The read of a digest that hangs is not repeated before it has returned.
    """

    def __init__(
        self,
        read: Callable[[str], T],
        done: Callable[[str, T | Exception], None],
        threads: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        counters: Counters | None = None,
    ) -> None:
        self.timeout = timeout
        self._read = read
        self._done = done
        self._clock = clock
        self._counters = counters or Counters(clock)
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[str | None] = SimpleQueue()
        self._stopped = False
        self._pending: OrderedDict[str, bool] = OrderedDict()  # digest -> whether it may start without room
        self._asked: dict[str, float] = {}  # digest -> when its pending read was requested
        self._running: dict[str, Reading] = {}
        self._hanging: dict[str, Reading] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is read or waits for it."""
        return not self._running and not self._pending

    @property
    def stalled(self) -> bool:
        """Whether something waits to be read, and nothing is."""
        return bool(self._pending) and not self._running

    def request(self, digest: str, *, again: bool = False) -> None:
        """Queues a read unless one is queued, running or hanging.

        Args:
            digest: of the adapter.
            again: it was loaded for a request that still waits: ahead of the others, and whether or not there is room.
        """
        if digest not in self._running and digest not in self._hanging:
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
        while self._has_thread():
            digest = self._next(urgent, room)
            if digest is None or not self._begin(digest, ahead=False):
                return
            del self._pending[digest]
            self._counters.waited(self._clock() - self._asked.pop(digest))

    def read_ahead(self, digest: str) -> None:
        """Begins a read that nobody has asked for, while the loader is idle and refuses nothing."""
        self._begin(digest, ahead=True)

    def unload(self, digest: str) -> None:
        """What its read yields, if there is one, is for those alone who wait for it then."""
        if reading := self._running.get(digest) or self._hanging.get(digest):
            reading.unloaded = True

    def finish(self, digest: str) -> Reading:
        """Notes the end of a read, and returns what was known of it."""
        return self._running.pop(digest, None) or self._hanging.pop(digest)

    def overdue(self) -> list[str]:
        """The digests whose reads hang from now on."""
        now = self._clock()
        late = [digest for digest, reading in self._running.items() if now - reading.began >= self.timeout]
        for digest in late:
            self._hanging[digest] = self._running.pop(digest)
            self._counters.not_loaded("timed_out")
        return late

    def hopeless(self) -> list[str]:
        """Takes back the requests that no thread is left for, and returns their digests."""
        lost = list(self._pending) if len(self._hanging) == 2 * self._limit else []
        for digest in lost:
            self.cancel(digest)
        return lost

    def hangs(self, digest: str) -> bool:
        """Whether its read has not ended in time, and not since."""
        return digest in self._hanging

    def expects(self, digest: str) -> bool:
        """Whether its read is to end, or, as the loader has stopped, none is."""
        return self._stopped or digest in self._running or digest in self._pending

    def refusal(self) -> str | None:
        """Why nothing can be read now."""
        if self._stopped:
            return "the loader has stopped"
        if len(self._hanging) == 2 * self._limit:
            return f"{len(self._hanging)} reads of other adapters have not ended in time"
        return None

    def stop(self) -> None:
        """Forgets what has not begun and begins nothing else."""
        self._stopped = True
        self._pending.clear()
        self._asked.clear()
        for _ in self._threads:
            self._jobs.put(None)

    def join(self) -> None:
        """Waits for what has begun, but for no read that hangs. Called without the owner's lock, which `done` takes."""
        end = time.monotonic() + (self.timeout if self._running else GRACE)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _has_thread(self) -> bool:
        busy = len(self._running)
        return not self._stopped and busy < self._limit and busy + len(self._hanging) < 2 * self._limit

    def _begin(self, digest: str, *, ahead: bool) -> bool:
        """Hands a read to a thread; False if the system has none to give."""
        if len(self._threads) == len(self._running) + len(self._hanging):
            thread = threading.Thread(target=self._work, name="adapter-loader", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._threads.append(thread)
        self._running[digest] = Reading(self._clock(), ahead)
        self._jobs.put(digest)
        return True

    def _next(self, urgent: Collection[str], room: bool) -> str | None:
        for digest in urgent:
            if digest in self._pending:
                return digest
        first, again = next(iter(self._pending.items()), (None, False))
        return first if room or again else None

    def _work(self) -> None:
        while (digest := self._jobs.get()) is not None:
            self._done(digest, self._result(digest))  # no name keeps what was read until the next read has ended

    def _result(self, digest: str) -> T | Exception:
        try:
            return self._read(digest)
        except Exception as error:  # what is wrong with one adapter concerns those who wait for it, and nobody else
            return error
