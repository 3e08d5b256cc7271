import asyncio
import threading

import pytest

from openlora_jax.engine.request import Delta, Event
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import EngineStopped


def delta(number: int) -> Delta:
    return Delta(index=0, token_ids=(number,), text=str(number))


EVENTS: list[Event] = [delta(number) for number in range(50)]


def nothing() -> None:
    pass


def write(stream: EventStream, error: EngineStopped | None = None) -> None:
    for event in EVENTS[:-1]:
        stream.put(event)
    stream.close(EVENTS[-1], error=error)


def test_a_thread_reads_what_another_writes() -> None:
    stream = EventStream(nothing)
    writer = threading.Thread(target=write, args=[stream])
    writer.start()
    assert list(stream) == EVENTS
    writer.join()
    assert list(stream) == []


async def test_a_coroutine_reads_what_a_thread_writes() -> None:
    stream = EventStream(nothing)
    reader = asyncio.create_task(_read(stream))
    await asyncio.to_thread(write, stream)
    assert await reader == EVENTS


async def _read(stream: EventStream) -> list[Event]:
    return [event async for event in stream]


def test_the_error_comes_after_the_events_before_it() -> None:
    stream = EventStream(nothing)
    write(stream, error=EngineStopped("test"))
    assert [next(stream) for _ in EVENTS] == EVENTS
    for _ in range(2):
        with pytest.raises(EngineStopped):
            next(stream)


async def test_the_error_reaches_a_waiting_coroutine() -> None:
    stream = EventStream(nothing)
    reader = asyncio.create_task(_read(stream))
    await asyncio.sleep(0)
    stream.close(error=EngineStopped("test"))
    with pytest.raises(EngineStopped):
        await reader


async def test_a_reader_that_gave_up_loses_nothing() -> None:
    stream = EventStream(nothing)
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    write(stream)
    assert await _read(stream) == EVENTS


def test_cancel_calls_back_once() -> None:
    calls: list[None] = []
    stream = EventStream(lambda: calls.append(None))
    stream.cancel()
    stream.cancel()
    assert stream.cancelled
    assert len(calls) == 1


def test_a_reader_too_far_behind_is_cancelled() -> None:
    stream = EventStream(nothing, limit=2)
    for number in range(2):
        stream.put(delta(number))
        assert not stream.cancelled
    stream.put(delta(2))
    assert stream.cancelled
    stream.close()
    assert list(stream) == EVENTS[:3]


def test_a_closed_event_loop_cancels_and_hurts_nobody() -> None:
    stream = EventStream(nothing)
    loop = asyncio.new_event_loop()
    reader = loop.create_task(_read(stream))
    loop.run_until_complete(asyncio.sleep(0))
    reader.cancel()
    loop.run_until_complete(asyncio.wait([reader]))
    loop.close()
    stream.put(delta(0))
    assert stream.cancelled
