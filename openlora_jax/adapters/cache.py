"""The adapters that requests use, from disk to device. The one place where host cache, loader and residency meet.

A request acquires a lease at admission, which starts the read at once, on a loader thread. When the adapter is in host
memory the engine is told; when it schedules the request, it places the lease, which writes the pages to the device if
they are not there. Nothing here blocks the engine thread: it only takes a lock that nobody holds while reading.

What the oldest waiting request lacks, and what a request loses that was ready, is read next, whatever host memory holds
already; every other read begins only while what waiting requests hold there is within the budget. So there is always a
request that waits for no other one that waits: the oldest becomes ready, who was ready becomes so again, and what is
ready waits for nothing but pages that running requests give back.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Literal, Protocol, runtime_checkable

from openlora_jax.adapters.counters import Counters, MemoryUse
from openlora_jax.adapters.host_cache import AdapterTensors, HostAdapter, HostCache, StagedPages
from openlora_jax.adapters.loader import STOPPED, Loader
from openlora_jax.adapters.pages import AdapterPages, shortage
from openlora_jax.adapters.registry import Registration
from openlora_jax.adapters.residency import Residence, Residency
from openlora_jax.errors import AdapterUnavailable, OpenLoraError

RETRY_AFTER = 1.0
"""Seconds after a failed load during which further requests for that adapter fail without another read."""


@runtime_checkable
class AdapterFacts(Protocol):
    """What must be known of an adapter before its arrays are read; `Manifest` is one."""

    @property
    def base_digest(self) -> str: ...
    @property
    def pages(self) -> Mapping[str, int]: ...


@runtime_checkable
class AdapterSource(Protocol):
    """Where adapters come from; `AdapterStore` is one.

    `manifest` and `read` are called on loader threads, and what they raise fails the load.
    """

    def registrations(self) -> Mapping[str, Registration]: ...
    def manifest(self, digest: str) -> AdapterFacts: ...
    def read(self, digest: str) -> tuple[AdapterFacts, AdapterTensors]: ...


@runtime_checkable
class PagePool(Protocol):
    """Where pages are written to; `AdapterPool` is one."""

    def stage(self, counts: Mapping[str, int], tensors: AdapterTensors) -> StagedPages: ...
    def write(self, pages: AdapterPages, staged: StagedPages) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterStatus:
    """Where one adapter is now.

    Attributes:
        state: `host` is in host memory alone; `loading` is wanted and not on the device yet; `resident` and `draining`
            (leaves with its last request) are on the device; `absent` is pinned, and nothing more.
        requests: that use it or wait for it.
        pages: it holds on the device, over all modules.
        host_bytes: it holds in host memory.
    """

    digest: str
    state: Literal["absent", "host", "loading", "resident", "draining"]
    requests: int
    pinned: bool
    pages: int
    host_bytes: int


class Lease:
    """One request's hold on one adapter. Made by `AdapterCache.acquire`; any thread."""

    def __init__(self, cache: "AdapterCache", request: int, name: str, residence: Residence) -> None:
        self.name = name
        self.digest = residence.digest
        self._cache = cache
        self._request = request
        self._residence = residence
        self._misfit: str | None = None
        self._pages: AdapterPages | None = None
        self._released = False

    @property
    def pages(self) -> AdapterPages:
        """Where the adapter is on the device; valid from `place` to `release`."""
        if self._pages is None:
            raise RuntimeError(f"the lease on {self.name!r} was not placed")
        return self._pages

    @property
    def ready(self) -> bool:
        """Whether it is in host memory or on the device, so that `place` may succeed."""
        return self._cache._is_ready(self._residence)

    @property
    def resident(self) -> bool:
        """Whether it is on the device."""
        return self._residence.pages is not None

    @property
    def error(self) -> OpenLoraError | None:
        """Why it cannot be served; None while it loads and when it is ready."""
        reason = self._misfit or self._residence.failure
        return AdapterUnavailable(self.name, self.digest, reason) if reason else None

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until it is ready or has failed, at most `timeout` seconds; False when neither came true."""
        return self._cache._wait(self, timeout)

    def release(self) -> None:
        """Gives the adapter up; again does nothing. Drop what a dispatched step still yields for this request."""
        self._cache._release(self)


class AdapterCache:
    """Adapters in host memory and on the device, by digest.

    Attributes:
        on_ready: called with a digest when its load ended, well or badly, while somebody waits for it. It runs on a
            loader thread and must not block. The engine sets it.
        counters: what has happened here.
    """

    def __init__(
        self,
        source: AdapterSource,
        pool: PagePool,
        capacities: Mapping[str, int],
        *,
        base_digest: str,
        host_bytes: int,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
        counters: Counters | None = None,
    ) -> None:
        """`capacities` are the pool's; `base_digest` is what adapters must have been converted for."""
        self.on_ready: Callable[[str], None] = lambda digest: None
        self._source = source
        self._pool = pool
        self._base_digest = base_digest
        self._usable = {module: capacity - 1 for module, capacity in capacities.items()}
        self.counters = counters or Counters(clock)
        self._residency = Residency(capacities, self.counters)
        self._host = HostCache(host_bytes, self.counters)
        self._loader = Loader(self._read, self._loaded, threads, RETRY_AFTER, clock, self.counters)
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._requests = count()
        self._waiting: OrderedDict[Lease, None] = OrderedDict()  # not placed and not released, request by request
        self._pins: set[str] = set()  # names
        self._pins_lock = threading.Lock()  # taken before `_lock`, never by the engine thread: it is held while reading

    def acquire(self, *adapters: tuple[str, str]) -> list[Lease]:
        """New holds on the adapters of one request, each given by name and digest. Any thread.

        The load of each begins in its turn, unless it is here, on its way, or has just failed. Who gets a lease that
        fails releases all that came with it, so that younger requests have their turn.

        Raises:
            BadCheckpoint: something is pinned, and the registry that says what it stands for is damaged.
        """
        self._follow_pins()
        with self._lock:
            request = next(self._requests)
            leases = [self._lease(request, name, digest) for name, digest in adapters]
            self._begin_reads()
            return leases

    def place(self, *leases: Lease) -> bool:
        """Brings the adapters of one request to the device, all or none. Engine thread only.

        Room is made by evicting adapters that no placed lease uses and nobody pinned, least recently used first and no
        more than needed. A mix that could not fit even so gets its error here.

        Returns:
            True when all are placed: they stay where they are until released. False when one is not loaded, has failed,
            or there is no room now.
        """
        with self._lock:
            writes = self._reserve(leases)
        if writes is None:
            return False
        failed = [residence for residence, adapter in writes if not self._write(residence, adapter)]
        return not failed

    def fits(self, leases: Iterable[Lease], without: Iterable[Lease]) -> bool:
        """Whether `place` would find room for one request's leases, if these others, all placed, were displaced."""
        leases = list(leases)
        with self._lock:
            if any(lease._released or lease.error or not self._here(lease._residence) for lease in leases):
                return False
            members = [lease._residence for lease in leases]
            return self._residency.fits(members, [lease._residence for lease in without])

    def displace(self, *leases: Lease) -> None:
        """Takes the device's pages back from placed leases: they wait again, until they are placed. Engine thread only.

        The pages stay as they are until room is needed.
        """
        with self._lock:
            placed = [lease for lease in leases if lease._pages is not None and not lease._released]
            self._residency.displace([lease._residence for lease in placed])
            for lease in placed:
                lease._pages = None
                self._waiting[lease] = None

    def load(self, name: str, digest: str) -> None:
        """Brings an adapter into host memory and waits for it. Not for the engine thread.

        Raises:
            AdapterUnavailable: it cannot be loaded.
        """
        [lease] = self.acquire((name, digest))
        try:
            lease.wait()
            if lease.error:
                raise lease.error
        finally:
            lease.release()

    def unload(self, digest: str) -> None:
        """Gives an adapter's memory back, on host and device: now if it is idle, else with its last lease.

        Every name that stands for it is unpinned.

        A request that comes before that calls it back: the same digest is the same bytes. Removing its name from the
        registry is what keeps new requests away.
        """
        with self._pins_lock:
            self._pins = {name for name, pinned in self._pinned().items() if pinned != digest}
        self._follow_pins()
        with self._lock:
            self._residency.unload(digest)
            if not self._host.held(digest):
                self._host.drop(digest)

    def pin(self, name: str, pinned: bool) -> None:
        """What a pinned name stands for, once on the device, stays there until the name is unpinned or unloaded.

        The pin follows its name: to the new adapter when it is replaced, and away when it is removed.
        """
        with self._pins_lock:
            (self._pins.add if pinned else self._pins.discard)(name)
        self._follow_pins()

    def status(self) -> list[AdapterStatus]:
        """Every adapter in memory or pinned, by digest."""
        self._follow_pins()
        with self._lock:
            residences = {residence.digest: residence for residence in self._residency.all()}
            digests = {*residences, *self._host.digests(), *self._residency.pinned}
            return [self._status(digest, residences.get(digest)) for digest in sorted(digests)]

    def memory(self) -> MemoryUse:
        """What the adapters hold now."""
        with self._lock:
            return MemoryUse(
                host_bytes=self._host.nbytes, host_budget=self._host.budget, pages=self._residency.pages_by_state()
            )

    def close(self) -> None:
        """Waits for the reads that have begun and begins no others; what still waits for one fails."""
        with self._lock:
            self._loader.stop()
        self._loader.join()
        with self._settled:
            for residence in list(self._residency.all()):
                if not self._here(residence):
                    self._residency.fail(residence, STOPPED)
            self._settled.notify_all()

    def validate(self) -> None:
        """Raises RuntimeError when a condition of `Residency` does not hold."""
        with self._lock:
            self._residency.validate()

    def _status(self, digest: str, residence: Residence | None) -> AdapterStatus:
        host_bytes = self._host.size(digest)
        pages = (residence and residence.pages) or {}
        return AdapterStatus(
            digest=digest,
            state=residence.state if residence else "host" if host_bytes else "absent",
            requests=residence.waiters + residence.refs if residence else 0,
            pinned=digest in self._residency.pinned,
            pages=sum(map(len, pages.values())),
            host_bytes=host_bytes,
        )

    def _is_ready(self, residence: Residence) -> bool:
        with self._lock:
            return self._here(residence)

    def _here(self, residence: Residence) -> bool:
        return residence.pages is not None or (residence.failure is None and self._host.held(residence.digest))

    def _wait(self, lease: Lease, timeout: float | None) -> bool:
        with self._settled:
            return self._settled.wait_for(lambda: self._here(lease._residence) or lease.error is not None, timeout)

    def _follow_pins(self) -> None:
        """Looks up what the pinned names stand for now; other processes change that."""
        with self._pins_lock:
            pinned = self._pinned()
            self._pins = set(pinned)
            with self._lock:
                self._residency.pinned = frozenset(pinned.values())

    def _pinned(self) -> dict[str, str]:
        registered = self._source.registrations() if self._pins else {}
        return {name: registered[name].digest for name in self._pins if name in registered}

    def _lease(self, request: int, name: str, digest: str) -> Lease:
        residence = self._residency.acquire(digest)
        self.counters.asked(
            digest, "device" if residence.pages is not None else "host" if self._host.size(digest) else None
        )
        if residence.pages is None and not self._host.held(digest):
            self._fetch(residence)
        lease = Lease(self, request, name, residence)
        self._waiting[lease] = None
        return lease

    def _begin_reads(self) -> None:
        oldest = next(iter(self._waiting), None)
        members = takewhile(lambda lease: oldest and lease._request == oldest._request, self._waiting)
        self._loader.start(urgent=[lease.digest for lease in members], room=self._host.has_room)

    def _fetch(self, residence: Residence, *, again: bool = False) -> None:
        """Sees to it that a residence without pages gets its adapter into host memory, and that it stays there."""
        adapter = self._host.get(residence.digest)
        if adapter is not None:
            residence.counts = adapter.counts
            self._host.hold(residence.digest)
        elif reason := self._loader.refusal(residence.digest):
            self.counters.not_loaded("refused")
            self._residency.fail(residence, reason)
        else:
            self._loader.request(residence.digest, again=again)

    def _read(self, digest: str) -> HostAdapter:
        """On a loader thread, without the lock: everything that can be known to be wrong is found before the device."""
        with self.counters.load(digest, "disk") as load:
            facts = self._source.manifest(digest)
            if facts.base_digest != self._base_digest:
                raise ValueError(f"it was converted for base {facts.base_digest}, and this one is {self._base_digest}")
            if reason := shortage(facts.pages, self._usable):
                raise ValueError(reason)
            load.lap("manifest")
            facts, tensors = self._source.read(digest)
            load.lap("read")
            adapter = HostAdapter(facts.pages, self._pool.stage(facts.pages, tensors))
            load.lap("stage")
            load.nbytes = adapter.nbytes
            return adapter

    def _loaded(self, digest: str, result: HostAdapter | Exception) -> None:
        """On a loader thread: the read of `_read` has ended."""
        with self._settled:
            waiting = self._residency.get(digest)
            if isinstance(result, Exception):
                reason = str(result) or type(result).__name__
                self._loader.finish(digest, reason)
                if waiting:
                    self._residency.fail(waiting, reason)
            else:
                self._loader.finish(digest, None)
                self._host.put(digest, result, held=waiting is not None)
                if waiting:
                    waiting.counts = result.counts
            self._begin_reads()
            self._settled.notify_all()
        if waiting:
            self.on_ready(digest)

    def _reserve(self, leases: tuple[Lease, ...]) -> list[tuple[Residence, HostAdapter]] | None:
        """Gives every lease a reference and its residence pages; returns what must be written into them."""
        members = [lease._residence for lease in leases]
        arriving = [lease for lease in leases if lease._pages is None]
        if any(lease._released or lease.error or not self._here(lease._residence) for lease in leases):
            return None
        if reason := self._residency.misfit(members):
            for lease in leases:
                lease._misfit = reason
            return None
        absent = [member for member in dict.fromkeys(members) if member.pages is None]
        evicted = self._residency.place([lease._residence for lease in arriving])
        if evicted is None:
            return None
        writes = [(member, adapter) for member in absent if (adapter := self._host.get(member.digest))]
        for lease in arriving:
            lease._pages = lease._residence.pages
            self._waiting.pop(lease, None)
        for member in absent:
            self._host.unhold(member.digest)
        for residence in evicted:
            if residence.waiters:
                self._fetch(residence, again=True)
        self._begin_reads()
        return writes

    def _write(self, residence: Residence, adapter: HostAdapter) -> bool:
        """Dispatches a page write. Only this thread gives pages away, so they are still this residence's own."""
        try:
            with self.counters.load(residence.digest, "host") as load:
                self._pool.write(residence.pages or {}, adapter.pages)
                load.lap("write")
                load.nbytes = adapter.nbytes
        except (MemoryError, RuntimeError) as error:  # the device ran out of memory, as JAX reports it
            with self._lock:
                self._residency.fail(residence, f"its pages could not be written: {error}")
            return False
        return True

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if lease._released:
                return
            lease._released = True
            self._waiting.pop(lease, None)
            residence = lease._residence
            free = self._residency.release(residence, placed=lease._pages is not None)
            if free and self._residency.get(lease.digest) is None:
                self._loader.cancel(lease.digest)
                self._host.unhold(lease.digest)
                if residence.unloading:
                    self._host.drop(lease.digest)
            self._begin_reads()
