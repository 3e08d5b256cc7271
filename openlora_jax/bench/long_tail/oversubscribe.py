"""`bench oversubscribe`: many more adapters than there is room for, asked for by Zipf's law, beside the same arrivals
for adapters that are always resident.

The control maps each name to one of the most popular adapters, of equal rank, which are pinned to the device meanwhile.
Both arms run in turn in every round, on the same engine, with the same due times and prompts. What a round asks for and
host memory lacks is out of the page cache when it begins. The load is a share of the capacity, which is measured first:
what clients get that ask again at once, for resident adapters. That is measured in turn with an engine for which the
resident adapters are the only ones registered.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.bench.long_tail import page_cache
from openlora_jax.bench.long_tail.client import Answer, Ask, closed_loop, open_loop, prompts
from openlora_jax.bench.long_tail.figures import Bound, Loads, quantile
from openlora_jax.bench.long_tail.traffic import DECILES, Arrival, arrivals, deciles, resident, zipf
from openlora_jax.bench.long_tail.workloads import Oversubscribe
from openlora_jax.bench.samples import Samples
from openlora_jax.llm import LLM
from openlora_jax.progress import Progress

Item = TypeVar("Item")

ARMS = ("paged", "control")

P99_OVER_CONTROL, COLD_OVER_HOT, THROUGHPUT = 1.5, 2.0, 0.95
"""The bounds: p99 time to first token over the control's; the coldest decile's median over the hottest's; requests a
second with all registered over those with the resident ones registered alone."""


@dataclass(frozen=True, slots=True)
class Run:
    """One arm of one round.

    Attributes:
        adapters: that the arrivals named, before the control's mapping, by popularity.
        answers: to them, in the same order.
        loads: of adapters meanwhile.
    """

    adapters: list[int]
    answers: list[Answer]
    loads: Loads

    def by_decile(self) -> list[list[Answer]]:
        """The answers, by the popularity of what was asked for, the most popular first."""
        found: list[list[Answer]] = [[] for _ in range(DECILES)]
        for tenth, each in zip(deciles(self.adapters), self.answers, strict=True):
            found[tenth].append(each)
        return found


@dataclass(frozen=True, slots=True)
class Results:
    """Requests a second of the closed loops, what was offered, a run for each arm and round, and files that stayed in
    the page cache when they should not.
    """

    all_registered: Samples
    resident_registered: Samples
    rate: float
    arms: Mapping[str, list[Run]]
    stayed: int

    @property
    def bounds(self) -> list[Bound]:
        pairs = list(zip(self.arms["paged"], self.arms["control"], strict=True))
        tails = tuple(_tail(paged) / _tail(control) for paged, control in pairs)
        ends = ((run.by_decile()[-1], run.by_decile()[0]) for run in self.arms["paged"])
        throughputs = zip(self.all_registered.values, self.resident_registered.values, strict=True)
        return [
            Bound(what="p99 time to first token over the control's", values=tails, limit=P99_OVER_CONTROL),
            Bound(
                what="median time to first token, the coldest tenth of the requests over the hottest",
                values=tuple(_median(cold) / _median(hot) for cold, hot in ends),
                limit=COLD_OVER_HOT,
            ),
            Bound(
                what=f"requests/s with {self.all_registered.name} over {self.resident_registered.name}",
                values=tuple(mine / theirs for mine, theirs in throughputs),
                limit=THROUGHPUT,
                least=True,
            ),
        ]


def _tail(run: Run) -> float:
    return quantile([each.ttft for each in run.answers], 0.99)


def _median(answers: Sequence[Answer]) -> float:
    return median(each.ttft for each in answers)


def measure(llm: LLM, few: LLM, store: Path, workload: Oversubscribe, progress: Progress) -> Results:
    """The capacity, then both arms in turn.

    Args:
        llm: with all adapters registered, at `store`.
        few: with those alone that the control uses.
        store: of `llm`.
        workload: what is asked for.
        progress: counts answers.
    """
    bench = _Bench(llm, AdapterStore(store), workload, progress)
    everybody, alone = bench.capacity(few)
    rate = workload.load * everybody.median
    arms: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for number in range(workload.rounds):
        for arm in _turned(number, ARMS):
            arms[arm].append(bench.arm(arm, number, rate))
    return Results(everybody, alone, rate, arms, bench.stayed)


class _Bench:
    """The engine under test, and how far the work is.

    Attributes:
        stayed: files that could not be taken out of the page cache.
    """

    def __init__(self, llm: LLM, store: AdapterStore, workload: Oversubscribe, progress: Progress) -> None:
        self._llm = llm
        self._store = store
        self._workload = workload
        self._fleet = workload.fleet
        self._residents = workload.resident.count
        self._shares = zipf(workload.registered, workload.zipf)
        self._progress = progress
        self.stayed = 0
        self._done = itertools.count(1)
        self._total = 2 * workload.closed * workload.closed_rounds + 2 * workload.rounds * workload.round_requests

    def capacity(self, few: LLM) -> tuple[Samples, Samples]:
        """Requests a second of closed loops: with all registered, and with the resident ones alone."""
        workload = self._workload
        counts = (workload.registered, self._residents)
        samples = [Samples(f"{count} registered", "requests/s") for count in counts]
        arms = list(zip(samples, (self._llm, few), strict=True))
        for _, llm in arms:
            self._make_resident(llm)
        for number in range(workload.closed_rounds):
            asked = arrivals(workload.closed, 1.0, self._shares, self._seed(number))
            for each, llm in _turned(number, arms):
                asks = self._asks(self._mapped(asked), self._seed(number))
                answered = self._progress_of(f"capacity with {each.name}")
                each.values.append(asyncio.run(closed_loop(llm, asks, workload.rows, answered)))
        return samples[0], samples[1]

    def arm(self, name: str, number: int, rate: float) -> Run:
        """One arm of a round."""
        seed, answered = self._seed(number), self._progress_of(f"round {number + 1}, {name}")
        asked = arrivals(self._workload.round_requests, rate, self._shares, seed)
        adapters = [arrival.adapter for arrival in asked]
        if name == "control":
            self._make_resident(self._llm)
            asked = self._mapped(asked)
        else:
            self._pin(self._llm, False)
            self._forget(adapters)
        before = self._llm.adapters.counters.snapshot()
        answers = asyncio.run(open_loop(self._llm, self._asks(asked, seed), answered))
        loads = Loads.between(before, self._llm.adapters.counters.snapshot())
        return Run(adapters, answers, loads)

    def _make_resident(self, llm: LLM) -> None:
        """Brings the control's adapters to the device, and pins them to it."""
        self._pin(llm, True)
        everyone = [Arrival(0.0, index) for index in range(self._residents)]
        asyncio.run(closed_loop(llm, self._asks(everyone, seed=0), self._residents))

    def _pin(self, llm: LLM, pinned: bool) -> None:
        for index in range(self._residents):
            llm.adapters.pin(self._fleet.name(index), pinned)

    def _forget(self, adapters: Iterable[int]) -> None:
        """Takes the files of what host memory lacks out of the page cache."""
        here = {status.digest for status in self._llm.adapters.status() if status.host_bytes}
        digests = {self._store.resolve(self._fleet.name(adapter)) for adapter in adapters}
        self.stayed += page_cache.drop(self._store, sorted(digests - here))

    def _mapped(self, asked: Sequence[Arrival]) -> list[Arrival]:
        return [Arrival(each.due, resident(each.adapter, self._residents)) for each in asked]

    def _asks(self, asked: Sequence[Arrival], seed: int) -> list[Ask]:
        texts = prompts(self._llm, len(asked), self._workload.prompt, seed)
        return [
            Ask(due=each.due, name=self._fleet.name(each.adapter), prompt=prompt, new=self._workload.new)
            for each, prompt in zip(asked, texts, strict=True)
        ]

    def _progress_of(self, stage: str) -> Callable[[], None]:
        return lambda: self._progress(stage, next(self._done), self._total)

    def _seed(self, number: int) -> int:
        return self._workload.seed + 1000 * number


def _turned(number: int, pair: Sequence[Item]) -> Sequence[Item]:
    """In this order in one round, in the other in the next."""
    return pair[::-1] if number % 2 else pair
