"""What the tiers of adapters have done since the start, and hold: plain numbers, for whoever wants to show them.

A load takes an adapter from its *source* one tier up: from a `remote` store to the disk, from `disk` to host memory,
from `host` memory to the device.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Tier = Literal["device", "host", "disk"]
Source = Literal["remote", "disk", "host"]
Result = Literal["ok", "failed", "cancelled", "refused", "timed_out"]
"""`cancelled`: nobody waited for it any more when its turn came; `refused`: not tried, as it had failed just before;
`timed_out`: nobody waits for it any longer, and it counts once more when it ends after all."""
Stage = Literal["wait", "fetch", "manifest", "read", "stage", "write"]
"""From a remote store: `fetch`, a part of the `read` for which it was done. From disk: `wait` for a thread and for
room; `manifest` read and checked; arrays `read` and verified; pages laid out for copying (`stage`). From host memory:
the host's part in the `write` into the pool."""
Reason = Literal["room", "unload", "failure", "unused"]
"""`unused`: it left for room too, but it was a prefetch that nobody had asked for since."""
PageState = Literal["free", "used", "pinned", "idle"]

BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds in seconds of what is counted together."""

MAX_USES = 16_384
"""Digests whose use is remembered; those least recently used are forgotten first."""


@dataclass(slots=True)
class Seconds:
    """A distribution of durations.

    Attributes:
        counts: of those up to each of `BOUNDS`, and beyond the last; one that fits several counts for the first.
        total: their sum.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """Of one adapter.

    Attributes:
        requests: that asked for it.
        hits: of those, how many found it in host memory or on the device.
        last: when the last one came, on the clock of the counters.
        load_seconds: its last load from disk took, without the wait for its turn; None if it had none.
    """

    requests: int = 0
    hits: int = 0
    last: float = 0.0
    load_seconds: float | None = None


@dataclass(kw_only=True, slots=True)
class Counts:
    """Everything that is counted.

    Attributes:
        lookups: by tier. A request asks the device first, then, for what is not there, host memory. Whoever reads asks
            the disk, if adapters may be elsewhere.
        hits: those that found it.
        loads: by source and result.
        loaded_bytes: by source.
        seconds: of loads, by stage.
        evictions: by tier and reason.
        prefetches: into a tier, before anybody asked.
        prefetch_hits: of those, the ones that a request found there.
        uses: by digest, the least recently used first.
    """

    lookups: Counter[Tier] = field(default_factory=Counter)
    hits: Counter[Tier] = field(default_factory=Counter)
    loads: Counter[tuple[Source, Result]] = field(default_factory=Counter)
    loaded_bytes: Counter[Source] = field(default_factory=Counter)
    seconds: dict[Stage, Seconds] = field(default_factory=dict)
    evictions: Counter[tuple[Tier, Reason]] = field(default_factory=Counter)
    prefetches: Counter[Tier] = field(default_factory=Counter)
    prefetch_hits: Counter[Tier] = field(default_factory=Counter)
    uses: OrderedDict[str, Use] = field(default_factory=OrderedDict)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """What adapters hold together, now.

    Attributes:
        host_bytes: of `host_budget`.
        pages: module -> state -> pages on the device, without the zero page.
    """

    host_bytes: int
    host_budget: int
    pages: Mapping[str, Mapping[PageState, int]]


class Load:
    """A load under way, on the thread that does it.

    Attributes:
        nbytes: that were loaded; whoever loads sets it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.nbytes = 0
        self.laps: list[tuple[Stage, float]] = []
        self._clock = clock
        self._last = clock()

    @property
    def seconds(self) -> float:
        """Of the stages that have ended."""
        return sum(seconds for _, seconds in self.laps)

    def lap(self, stage: Stage) -> None:
        """Ends a stage, and begins the next."""
        now = self._clock()
        self.laps.append((stage, now - self._last))
        self._last = now


class Counters:
    """Counts from any thread: every method takes a lock of its own for an instant, and nothing else inside it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = Counts()
        self._unasked: dict[Tier, set[str]] = {tier: set() for tier in get_args(Tier)}  # prefetched, and still there

    def asked(self, digest: str, found: Tier | None) -> None:
        """A request asks for an adapter, which is in no higher tier than `found`; None is on disk, or on its way."""
        tiers: tuple[Tier, ...] = ("device",) if found == "device" else ("device", "host")
        with self._lock:
            self._counts.lookups.update(tiers)
            if found:
                self._counts.hits[found] += 1
                self._counts.prefetch_hits[found] += digest in self._unasked[found]
            for unasked in self._unasked.values():
                unasked.discard(digest)
            use = self._counts.uses.pop(digest, Use())
            hits = use.hits + (found is not None)
            self._counts.uses[digest] = replace(use, requests=use.requests + 1, hits=hits, last=self._clock())
            if len(self._counts.uses) > MAX_USES:
                self._counts.uses.popitem(last=False)

    def asked_disk(self, found: bool) -> None:
        """An adapter that may be elsewhere is to be read."""
        with self._lock:
            self._counts.lookups.update(["disk"])
            self._counts.hits.update(["disk"] if found else [])

    @contextmanager
    def load(self, digest: str, source: Source) -> Iterator[Load]:
        """Counts the load that is made in the block: it has failed if the block raises."""
        load = Load(self._clock)
        result: Result = "failed"
        try:
            yield load
            result = "ok"
        finally:
            with self._lock:
                self._counts.loads[source, result] += 1
                self._counts.loaded_bytes[source] += load.nbytes
                for stage, seconds in load.laps:
                    self._counts.seconds.setdefault(stage, Seconds()).add(seconds)
                if source == "disk" and result == "ok" and digest in self._counts.uses:
                    self._counts.uses[digest] = replace(self._counts.uses[digest], load_seconds=load.seconds)

    def waited(self, seconds: float) -> None:
        """A load from disk begins, so long after it was asked for."""
        with self._lock:
            self._counts.seconds.setdefault("wait", Seconds()).add(seconds)

    def not_loaded(self, result: Result) -> None:
        """A load from disk was `cancelled` before it began, or `refused`, or `timed_out`."""
        with self._lock:
            self._counts.loads["disk", result] += 1

    def prefetched(self, tier: Tier, digest: str) -> None:
        """An adapter has come into a tier before anybody asked."""
        with self._lock:
            self._counts.prefetches[tier] += 1
            self._unasked[tier].add(digest)

    def evicted(self, tier: Tier, reason: Reason, digest: str) -> None:
        """An adapter has left a tier."""
        with self._lock:
            if reason == "room" and digest in self._unasked[tier]:
                reason = "unused"
            self._unasked[tier].discard(digest)
            self._counts.evictions[tier, reason] += 1

    def use(self, digest: str) -> Use | None:
        """Of one adapter, as far as it is remembered."""
        with self._lock:
            return self._counts.uses.get(digest)

    def since(self, use: Use) -> float:
        """Seconds since the last request for it."""
        return self._clock() - use.last

    def snapshot(self) -> Counts:
        """The numbers as they are now, the caller's own."""
        with self._lock:
            counts = self._counts
            return Counts(
                lookups=Counter(counts.lookups),
                hits=Counter(counts.hits),
                loads=Counter(counts.loads),
                loaded_bytes=Counter(counts.loaded_bytes),
                seconds={stage: Seconds(list(each.counts), each.total) for stage, each in counts.seconds.items()},
                evictions=Counter(counts.evictions),
                prefetches=Counter(counts.prefetches),
                prefetch_hits=Counter(counts.prefetch_hits),
                uses=OrderedDict(counts.uses),
            )
