"""The way back to the client: a bounded queue of events between the engine thread and one reader."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from openlora_jax.engine.request import Event
from openlora_jax.errors import OpenLoraError

MAX_UNDELIVERED = 4096
"""Events that a reader may leave unread before its request is cancelled."""


class EventStream(Iterator[Event], AsyncIterator[Event]):
    """One request's events, in order, for one reader: a thread (`for`) or a coroutine (`async for`).

    Ends after Finished or Scored, or raises the OpenLoraError that ended the request. A cancelled generation ends with
    Finished too, each unfinished sample's last delta saying `cancelled`; a cancelled scoring ends without an event.
    """

    def __init__(self, on_cancel: Callable[[], None], limit: int = MAX_UNDELIVERED) -> None:
        self._on_cancel = on_cancel
        self._limit = limit
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._cancelled = False
        self._closed = False
        self._error: OpenLoraError | None = None

    def cancel(self) -> None:
        """Ends the request within one step. Any thread, any number of times, at any stage."""
        if not self._cancelled:
            self._cancelled = True
            self._on_cancel()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def put(self, event: Event) -> None:
        """Engine thread: hands over an event. A reader too far behind has its request cancelled."""
        with self._changed:
            self._events.append(event)
            self._cancelled = self._cancelled or len(self._events) > self._limit
            self._wake()

    def close(self, *last: Event, error: OpenLoraError | None = None) -> None:
        """Engine thread: the end, after the `last` events or by `error`."""
        with self._changed:
            self._events.extend(last)
            self._closed, self._error = True, error
            self._wake()

    def __next__(self) -> Event:
        with self._changed:
            self._changed.wait_for(self._readable)
            event = self._take()
        if event is None:
            raise StopIteration
        return event

    async def __anext__(self) -> Event:
        while True:
            with self._changed:
                if self._readable():
                    event = self._take()
                    break
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._waiter = (loop, future)
            await future
        if event is None:
            raise StopAsyncIteration
        return event

    def _readable(self) -> bool:
        return bool(self._events) or self._closed

    def _take(self) -> Event | None:
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is None:
            return
        loop, future = self._waiter
        self._waiter = None
        try:
            loop.call_soon_threadsafe(_resolve, future)
        except RuntimeError:  # the reader's event loop is closed: nobody will read the rest
            self._cancelled = True


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
