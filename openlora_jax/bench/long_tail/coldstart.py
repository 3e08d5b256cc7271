"""`bench coldstart`: the first token of a request whose adapter is not on the device, and what its load costs others.

Two settings. *alone*: one request at a time in an idle engine. *beside*: requests arrive as a Poisson process, beside
streams that run all the while. In both, each request is made once in every state of its adapter: `warm`, on the device;
`host`, in host memory; `disk`, on disk alone, its files out of the page cache. For `warm`, the name is mapped to one of
the adapters that are pinned to the device, of equal rank; all else is the same, arrivals and prompts included.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.bench.long_tail import page_cache
from openlora_jax.bench.long_tail.client import Answer, Ask, answer, gaps, neighbours, open_loop, prompts
from openlora_jax.bench.long_tail.figures import Bound, Loads, quantile
from openlora_jax.bench.long_tail.fleet import Fleet
from openlora_jax.bench.long_tail.traffic import poisson, resident
from openlora_jax.config import EngineConfig
from openlora_jax.llm import LLM
from openlora_jax.progress import Progress

STATES = ("warm", "host", "disk")

SETTLE = 0.2
"""Seconds from one lone request to the next: the engine is idle by then."""

ADDED_STEPS, DISK_OVER_WARM, NEIGHBOURS = 1.0, 1.15, 1.15
"""The bounds: decode steps added by an adapter in host memory; times as long from disk; the same of others' p99 gap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is asked for.

    Attributes:
        pages: of each module on the device, those of the pinned adapters included, which take half of them.
        ranks: of the adapters, in turn.
        prompt, new: tokens of each request that is measured.
        alone: requests of each state in the idle engine, a round.
        beside: of each state beside the streams, a round.
        rate: of their arrivals, a second.
        streams: that run beside them, of `stream_prompt` tokens.
        stream_new: tokens that a stream makes at most; it is cut when the last answer is there.
        rounds: of all that.
        seed: of arrivals and prompts.
    """

    pages: int = 32
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    prompt: int = 256
    new: int = 8
    alone: int = 8
    beside: int = 16
    rate: float = 0.7
    streams: int = 8
    stream_prompt: int = 16
    stream_new: int = 1000
    rounds: int = 6
    seed: int = 0

    @property
    def fleet(self) -> Fleet:
        """The pinned adapters, and a cold one for each request of a setting."""
        pinned = Fleet(count=self.pages, ranks=self.ranks).residents(self.pages // 2)
        return Fleet(count=pinned + max(self.alone, self.beside), ranks=self.ranks)

    @property
    def pinned(self) -> int:
        return self.fleet.residents(self.pages // 2)

    @property
    def settings(self) -> EngineConfig:
        """Every prompt is computed, adapters stay where they were put, and nobody waits for a row or a KV block.

        As many requests as there are streams run beside them.
        """
        block, rows = EngineConfig().kv_block, max(2 * self.streams, 4)
        lengths = (self.prompt + self.new, self.stream_prompt + self.stream_new)
        return EngineConfig(
            max_rows=rows,
            prefix_cache=False,
            prefetch=False,  # what was taken away would come back
            max_model_len=max(lengths),
            kv_blocks=1 + rows * sum(-(-length // block) + 1 for length in lengths),
            pool_pages=1 + self.pages,
            wide_pool_pages=1,
        )


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
    """A run for each state and round, in both settings; files that stayed in the page cache, when they should not."""

    alone: Rounds
    beside: Rounds
    stayed: int

    @property
    def settings(self) -> Iterator[tuple[str, Rounds]]:
        yield "alone", self.alone
        yield "beside", self.beside

    @property
    def bounds(self) -> list[Bound]:
        added = [
            Bound(
                what=f"{setting}: decode steps that `host` adds to the median time to first token",
                values=tuple(
                    (_ttft(host) - _ttft(warm)) / _step(warm)
                    for host, warm in zip(rounds["host"], rounds["warm"], strict=True)
                ),
                limit=ADDED_STEPS,
            )
            for setting, rounds in self.settings
        ]
        disk = [
            Bound(
                what=f"{setting}: median time to first token, `disk` over `warm`",
                values=tuple(
                    _ttft(disk) / _ttft(warm) for disk, warm in zip(rounds["disk"], rounds["warm"], strict=True)
                ),
                limit=DISK_OVER_WARM,
            )
            for setting, rounds in self.settings
        ]
        others = [
            Bound(
                what=f"p99 token gap of the streams beside, `{state}` over `warm`",
                values=tuple(
                    quantile(cold.gaps, 0.99) / quantile(warm.gaps, 0.99)
                    for cold, warm in zip(self.beside[state], self.beside["warm"], strict=True)
                ),
                limit=NEIGHBOURS,
            )
            for state in ("host", "disk")
        ]
        return [*added, *disk, *others]


def _ttft(run: Run) -> float:
    return median(each.ttft for each in run.answers)


def _step(run: Run) -> float:
    """Seconds of a decode step, as the streams see it, or who is alone."""
    return median(run.gaps or [gap for each in run.answers for gap in each.gaps])


def measure(llm: LLM, store: Path, workload: Workload, progress: Progress) -> Results:
    """Every state in both settings, in turn, in every round."""
    bench = _Bench(llm, AdapterStore(store), workload)
    alone: dict[str, list[Run]] = {state: [] for state in STATES}
    beside: dict[str, list[Run]] = {state: [] for state in STATES}
    asyncio.run(bench.warm_up())
    total, done = workload.rounds * 2 * len(STATES), itertools.count(1)
    for number in range(workload.rounds):
        states = [*STATES[number % len(STATES) :], *STATES[: number % len(STATES)]]
        for state, run in asyncio.run(bench.alone(number, states)).items():
            alone[state].append(run)
            progress(f"round {number + 1}, alone", next(done), total)
        for state in states:
            beside[state].append(asyncio.run(bench.beside(number, state)))
            progress(f"round {number + 1}, beside, {state}", next(done), total)
    return Results(alone, beside, bench.stayed)


class _Bench:
    """The engine under test, with the pinned adapters on its device.

    Attributes:
        stayed: files that could not be taken out of the page cache.
    """

    def __init__(self, llm: LLM, store: AdapterStore, workload: Workload) -> None:
        self._llm = llm
        self._store = store
        self._workload = workload
        self._pinned = workload.pinned
        self.stayed = 0
        for index in range(self._pinned):
            llm.adapters.pin(self._name(index), True)

    async def warm_up(self) -> None:
        """Brings the pinned adapters to the device, where they stay."""
        for ask in self._asks([0.0] * self._pinned, range(self._pinned), seed=0):
            await answer(self._llm, ask)

    async def alone(self, number: int, states: Sequence[str]) -> dict[str, Run]:
        """One request at a time, in every state before the next one."""
        answers: dict[str, list[Answer]] = {state: [] for state in states}
        loads: dict[str, list[Loads]] = {state: [] for state in states}
        for place in range(self._workload.alone):
            for state in states:
                [ask] = self._prepare(state, [0.0], [self._pinned + place], self._seed(number) + place)
                await asyncio.sleep(SETTLE)
                before = self._llm.adapters.counters.snapshot()
                answers[state].append(await answer(self._llm, ask))
                loads[state].append(Loads.between(before, self._llm.adapters.counters.snapshot()))
        return {state: Run(answers[state], [], Loads.together(loads[state])) for state in states}

    async def beside(self, number: int, state: str) -> Run:
        """All requests of a round, in one state, beside the streams."""
        workload, seed = self._workload, self._seed(number)
        due = poisson(workload.beside, workload.rate, seed)
        asks = self._prepare(state, due, [self._pinned + place for place in range(workload.beside)], seed)
        async with neighbours(self._llm, self._streams(seed)) as times:
            begun = [len(each) for each in times]
            before = self._llm.adapters.counters.snapshot()
            answers = await open_loop(self._llm, asks)
            loads = Loads.between(before, self._llm.adapters.counters.snapshot())
            between = [gap for each, first in zip(times, begun, strict=True) for gap in gaps(each[first - 1 :])]
        return Run(answers, between, loads)

    def _prepare(self, state: str, due: Sequence[float], adapters: Sequence[int], seed: int) -> list[Ask]:
        """The requests, with the adapters that they name in the state that is asked for."""
        if state == "warm":
            adapters = [resident(adapter, self._pinned) for adapter in adapters]
        else:
            self._take_away(adapters, to_host=state == "host")
        return self._asks(due, adapters, seed)

    def _take_away(self, adapters: Sequence[int], *, to_host: bool) -> None:
        names = [self._name(adapter) for adapter in adapters]
        digests = [self._store.resolve(name) for name in names]
        for digest in digests:
            self._llm.adapters.unload(digest)
        if to_host:
            for name, digest in zip(names, digests, strict=True):
                self._llm.adapters.load(name, digest)
        else:
            self.stayed += page_cache.drop(self._store, digests)

    def _asks(self, due: Sequence[float], adapters: Sequence[int], seed: int) -> list[Ask]:
        workload = self._workload
        texts = prompts(self._llm, len(due), workload.prompt, seed)
        return [
            Ask(due=at, name=self._name(adapter), prompt=prompt, new=workload.new)
            for at, adapter, prompt in zip(due, adapters, texts, strict=True)
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
