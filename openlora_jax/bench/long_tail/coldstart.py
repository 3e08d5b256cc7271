"""`bench coldstart`: the first token of a request whose adapter is not on the device, and what its load costs others.

Two settings. *alone*: one request at a time in an idle engine. *beside*: requests arrive as a Poisson process, beside
streams that run all the while. In both, each request is made once in every state of its adapter: `warm`, on the device;
`host`, in host memory; `disk`, on disk alone, its files out of the page cache. For `warm`, the name is mapped to one of
the adapters that are pinned to the device, of equal rank; all else is the same, arrivals and prompts included.

A third one, *together*, is about loads that end one after the other: short requests for several adapters at once in an
idle engine. `disk` starts each as its load ends, as the engine does; `held` asks when all loads have ended, so that the
requests are one batch, and counts from when the loads began.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.bench.long_tail import page_cache
from openlora_jax.bench.long_tail.client import Answer, Ask, answer, gaps, neighbours, open_loop, prompts
from openlora_jax.bench.long_tail.figures import Bound, Loads, quantile
from openlora_jax.bench.long_tail.traffic import poisson, resident
from openlora_jax.bench.long_tail.workloads import Coldstart
from openlora_jax.llm import LLM
from openlora_jax.progress import Progress

STATES = ("warm", "host", "disk")

TOGETHER = ("warm", "disk", "held")

SETTLE = 0.2
"""Seconds from one lone request to the next: the engine is idle by then."""

ADDED_STEPS, DISK_OVER_WARM, NEIGHBOURS = 1.0, 1.15, 1.15
"""The bounds: decode steps added by an adapter in host memory; times as long from disk; the same of others' p99 gap."""


@dataclass(frozen=True, slots=True)
class Run:
    """One state in one setting, in one round.

    Attributes:
        answers: in the order of the arrivals.
        gaps: seconds between the tokens of the streams beside them.
        loads: of the adapters that they asked for.
    """

    answers: list[Answer]
    gaps: list[float]
    loads: Loads


Rounds = Mapping[str, list[Run]]
"""State -> a run for each round."""


@dataclass(frozen=True, slots=True)
class Results:
    """A run for each state and round, by setting; files that stayed in the page cache, when they should not."""

    alone: Rounds
    together: Rounds
    beside: Rounds
    stayed: int

    @property
    def settings(self) -> dict[str, Rounds]:
        return {"alone": self.alone, "together": self.together, "beside": self.beside}

    @property
    def bounds(self) -> list[Bound]:
        added = [
            Bound(
                what=f"{setting}: decode steps that `host` adds to the median time to first token",
                values=_beside_warm(rounds, "host", lambda host, warm: (_ttft(host) - _ttft(warm)) / _step(warm)),
                limit=ADDED_STEPS,
            )
            for setting, rounds in (("alone", self.alone), ("beside", self.beside))
        ]
        disk = [
            Bound(
                what=f"{setting}: median time to first token, `disk` over `warm`",
                values=_beside_warm(rounds, "disk", lambda disk, warm: _ttft(disk) / _ttft(warm)),
                limit=DISK_OVER_WARM,
            )
            for setting, rounds in (("alone", self.alone), ("beside", self.beside))
        ]
        others = [
            Bound(
                what=f"p99 token gap of the streams beside, `{state}` over `warm`",
                values=_beside_warm(self.beside, state, lambda cold, warm: _tail(cold) / _tail(warm)),
                limit=NEIGHBOURS,
            )
            for state in ("host", "disk")
        ]
        return [*added, *disk, *others]


def _beside_warm(rounds: Rounds, state: str, figure: Callable[[Run, Run], float]) -> tuple[float, ...]:
    """A figure for each round, of its run in a state and its warm one."""
    return tuple(figure(cold, warm) for cold, warm in zip(rounds[state], rounds["warm"], strict=True))


def _ttft(run: Run) -> float:
    return median(each.ttft for each in run.answers)


def _tail(run: Run) -> float:
    return quantile(run.gaps, 0.99)


def _step(run: Run) -> float:
    """Seconds of a decode step, as the streams see it, or who is alone."""
    return median(run.gaps or [gap for each in run.answers for gap in each.gaps])


def measure(llm: LLM, store: Path, workload: Coldstart, progress: Progress) -> Results:
    """Every state in both settings, in turn, in every round."""
    bench = _Bench(llm, AdapterStore(store), workload)
    alone: dict[str, list[Run]] = {state: [] for state in STATES}
    together: dict[str, list[Run]] = {state: [] for state in TOGETHER}
    beside: dict[str, list[Run]] = {state: [] for state in STATES}
    asyncio.run(bench.warm_up())
    total, done = workload.rounds * (2 * len(STATES) + len(TOGETHER)), itertools.count(1)
    for number in range(workload.rounds):
        for state, run in asyncio.run(bench.alone(number, _turned(number, STATES))).items():
            alone[state].append(run)
            progress(f"round {number + 1}, alone", next(done), total)
        for state, run in asyncio.run(bench.together(number, _turned(number, TOGETHER))).items():
            together[state].append(run)
            progress(f"round {number + 1}, together", next(done), total)
        for state in _turned(number, STATES):
            beside[state].append(asyncio.run(bench.beside(number, state)))
            progress(f"round {number + 1}, beside, {state}", next(done), total)
    return Results(alone, together, beside, bench.stayed)


def _turned(number: int, states: Sequence[str]) -> list[str]:
    """Another one first in each round."""
    return [*states[number % len(states) :], *states[: number % len(states)]]


class _Bench:
    """The engine under test, with the pinned adapters on its device.

    Attributes:
        stayed: files that could not be taken out of the page cache.
    """

    def __init__(self, llm: LLM, store: AdapterStore, workload: Coldstart) -> None:
        self._llm = llm
        self._store = store
        self._workload = workload
        self._pinned = workload.pinned
        self.stayed = 0
        for index in range(self._pinned):
            llm.adapters.pin(self._name(index), True)

    async def warm_up(self) -> None:
        """Brings the pinned adapters to the device, where they stay."""
        for ask in self._asks([0.0] * self._pinned, range(self._pinned), self._workload.prompt, seed=0):
            await answer(self._llm, ask)

    async def alone(self, number: int, states: Sequence[str]) -> dict[str, Run]:
        """One request at a time, in every state before the next one."""
        adapters = [[self._pinned + place] for place in range(self._workload.alone)]
        return await self._apart(states, adapters, self._workload.prompt, self._seed(number))

    async def together(self, number: int, states: Sequence[str]) -> dict[str, Run]:
        """Requests for several adapters at once, in every state before they come again."""
        adapters = range(self._pinned, self._pinned + self._workload.together)
        return await self._apart(
            states, [adapters] * self._workload.bursts, self._workload.burst_prompt, self._seed(number)
        )

    async def _apart(
        self, states: Sequence[str], bursts: Sequence[Sequence[int]], prompt: int, seed: int
    ) -> dict[str, Run]:
        """Requests for the adapters of each burst at once, while nothing else runs."""
        answers: dict[str, list[Answer]] = {state: [] for state in states}
        loads: dict[str, list[Loads]] = {state: [] for state in states}
        for place, adapters in enumerate(bursts):
            for state in states:
                asks = self._prepare(state, [0.0] * len(adapters), adapters, prompt, seed + place)
                await asyncio.sleep(SETTLE)
                before, due = self._llm.adapters.counters.snapshot(), time.monotonic()
                if state == "held":
                    await asyncio.gather(*(asyncio.to_thread(self._load, ask.name) for ask in asks))
                answers[state] += await asyncio.gather(*(answer(self._llm, ask, due) for ask in asks))
                loads[state].append(Loads.between(before, self._llm.adapters.counters.snapshot()))
        return {state: Run(answers[state], [], Loads.together(loads[state])) for state in states}

    async def beside(self, number: int, state: str) -> Run:
        """All requests of a round, in one state, beside the streams."""
        workload, seed = self._workload, self._seed(number)
        due = poisson(workload.beside, workload.rate, seed)
        adapters = range(self._pinned, self._pinned + workload.beside)
        asks = self._prepare(state, due, adapters, workload.prompt, seed)
        async with neighbours(self._llm, self._streams(seed)) as times:
            begun = [len(each) for each in times]
            before = self._llm.adapters.counters.snapshot()
            answers = await open_loop(self._llm, asks)
            loads = Loads.between(before, self._llm.adapters.counters.snapshot())
            between = [gap for each, first in zip(times, begun, strict=True) for gap in gaps(each[first - 1 :])]
        return Run(answers, between, loads)

    def _prepare(self, state: str, due: Sequence[float], adapters: Sequence[int], prompt: int, seed: int) -> list[Ask]:
        """The requests, with the adapters that they name in the state that is asked for."""
        if state == "warm":
            adapters = [resident(adapter, self._pinned) for adapter in adapters]
        else:
            self._take_away(adapters, to_host=state == "host")
        return self._asks(due, adapters, prompt, seed)

    def _take_away(self, adapters: Sequence[int], *, to_host: bool) -> None:
        names = [self._name(adapter) for adapter in adapters]
        digests = [self._store.resolve(name) for name in names]
        for digest in digests:
            self._llm.adapters.unload(digest)
        if to_host:
            for name in names:
                self._load(name)
        else:
            self.stayed += page_cache.drop(self._store, digests)

    def _load(self, name: str) -> None:
        """Brings an adapter into host memory."""
        self._llm.adapters.load(name, self._store.resolve(name))

    def _asks(self, due: Sequence[float], adapters: Sequence[int], prompt: int, seed: int) -> list[Ask]:
        texts = prompts(self._llm, len(due), prompt, seed)
        return [
            Ask(due=at, name=self._name(adapter), prompt=text, new=self._workload.new)
            for at, adapter, text in zip(due, adapters, texts, strict=True)
        ]

    def _streams(self, seed: int) -> list[Ask]:
        workload = self._workload
        texts = prompts(self._llm, workload.streams, workload.stream_prompt, seed)
        return [
            Ask(due=0.0, name=self._name(resident(index, self._pinned)), prompt=prompt, new=workload.stream_new)
            for index, prompt in enumerate(texts)
        ]

    def _name(self, adapter: int) -> str:
        return self._workload.fleet.name(adapter)

    def _seed(self, number: int) -> int:
        return self._workload.seed + 1000 * number
