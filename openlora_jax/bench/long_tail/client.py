"""Clients in this process: what they ask for, when it is due, and when each token came."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from openlora_jax.engine.request import Delta, Finished, GenerateRequest, MixItem, Timings
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import EngineStopped
from openlora_jax.llm import LLM

STAGES = ("late", "load", "queue", "room", "prefill", "delivery", "first decode")
"""Where the time to the second token goes: the client's own lateness; then as the engine has it, the queue without the
wait for room on the device, and that wait; the way to the reader; one decode step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request: of random tokens, and for a fixed number of them, whatever the model says.

    Attributes:
        due: seconds after the run begins.
        name: of the adapter.
    """

    due: float
    name: str
    prompt: tuple[int, ...]
    new: int

    def submit(self, llm: LLM) -> EventStream:
        params = SamplingParams(max_tokens=self.new, ignore_eos=True)
        return llm.engine.submit(GenerateRequest(prompt_ids=self.prompt, params=params, mix=(MixItem(self.name),)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of it, in monotonic seconds.

    Attributes:
        due: when it should have been sent; latency counts from here, also for who sends it late.
        submitted: when it was.
        tokens: when each came.
        timings: as the engine has them.
    """

    due: float
    submitted: float
    tokens: tuple[float, ...]
    timings: Timings

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.tokens[0] - self.due

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return gaps(self.tokens)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by `STAGES`; all but the last add up to `ttft`."""
        late, timings = self.submitted - self.due, self.timings
        delivery = self.ttft - late - timings.load - timings.queue - timings.prefill
        queue = timings.queue - timings.room
        parts = (late, timings.load, queue, timings.room, timings.prefill, delivery, self.gaps[0])
        return dict(zip(STAGES, parts, strict=True))


def gaps(times: Iterable[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def prompts(llm: LLM, count: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Random tokens."""
    tokens = np.random.default_rng([seed, 2]).integers(0, llm.model.vocab_size, (count, length))
    return [tuple(map(int, row)) for row in tokens]


async def answer(llm: LLM, ask: Ask, due: float | None = None) -> Answer:
    """Asks now. `due` is when that should have been."""
    submitted = time.monotonic()
    times: list[float] = []
    timings = await _read(ask.submit(llm), times)
    return Answer(due=submitted if due is None else due, submitted=submitted, tokens=tuple(times), timings=timings)


def silent() -> None:
    """Tells nobody that there is another answer."""


async def open_loop(llm: LLM, asks: Sequence[Ask], answered: Callable[[], None] = silent) -> list[Answer]:
    """Sends each when it is due, whatever has become of the others."""
    began = time.monotonic()

    async def one(ask: Ask) -> Answer:
        due = began + ask.due
        await asyncio.sleep(due - time.monotonic())
        result = await answer(llm, ask, due)
        answered()
        return result

    return list(await asyncio.gather(*map(one, asks)))


async def closed_loop(llm: LLM, asks: Sequence[Ask], clients: int, answered: Callable[[], None] = silent) -> float:
    """Requests a second of so many clients that each ask again once they have their answer."""
    left = iter(asks)

    async def client() -> None:
        for ask in left:
            await answer(llm, ask)
            answered()

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(asks) / (time.monotonic() - began)


@asynccontextmanager
async def neighbours(llm: LLM, asks: Sequence[Ask]) -> AsyncIterator[list[list[float]]]:
    """Streams that run meanwhile; yields when the tokens of each came, once all of them have begun."""
    times: list[list[float]] = [[] for _ in asks]
    streams = [ask.submit(llm) for ask in asks]
    readers = [asyncio.create_task(_read(stream, each)) for stream, each in zip(streams, times, strict=True)]
    try:
        while min(map(len, times), default=1) < 1 and not any(reader.done() for reader in readers):
            await asyncio.sleep(0.01)
        yield times
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*readers)


async def _read(stream: EventStream, times: list[float]) -> Timings:
    """Notes when each token came."""
    async for event in stream:
        if isinstance(event, Delta) and event.token_ids:
            times.append(time.monotonic())
        elif isinstance(event, Finished):
            return event.timings
    raise EngineStopped("a stream of the benchmark ended before its answer")
