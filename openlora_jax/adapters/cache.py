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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import count, takewhile
from math import inf

from openlora_jax.adapters.counters import Counters, MemoryUse
from openlora_jax.adapters.forecast import Forecast
from openlora_jax.adapters.host_cache import HostAdapter, HostCache
from openlora_jax.adapters.lease import AdapterStatus, Lease
from openlora_jax.adapters.loader import Loader, Reading
from openlora_jax.adapters.pins import Pins
from openlora_jax.adapters.prefetch import Prefetch
from openlora_jax.adapters.quarantine import Failure, Quarantine
from openlora_jax.adapters.reader import AdapterReader, AdapterSource, PagePool
from openlora_jax.adapters.residency import Residence, Residency
from openlora_jax.errors import AdapterUnreachable

LOOK = 0.1
"""Seconds between looks, of those who wait for an adapter, at whether its read hangs and whether it was given up."""


class AdapterCache:
    """Adapters in host memory and on the device, by digest.

    Attributes:
        on_ready: called with a digest when its load ended, well or badly, while somebody waits for it, or ahead of
            that. It runs on a loader thread and must not block. The engine sets it.
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
        load_timeout: float,
        min_residency: float,
        prefetch: bool,
        asked_before: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        counters: Counters | None = None,
    ) -> None:
        """`capacities` are the pool's; `base_digest` is what adapters must have been converted for.

        `load_timeout` is in seconds, from the begin of a read; `min_residency` see `Residency`.
        With `prefetch`, idle time brings adapters closer; `asked_before` are requests by digest that seed the forecast.
        """
        self.on_ready: Callable[[str], None] = lambda digest: None
        self._pool = pool
        self.counters = counters or Counters(clock)
        reader = AdapterReader(source, pool, capacities, base_digest, self.counters)
        self._residency = Residency(capacities, self.counters, min_residency)
        self._forecast = Forecast(asked_before, clock())
        self._clock = clock
        self._host = HostCache(host_bytes, self.counters, lambda digest: self._forecast.count(digest, clock()))
        self._loader = Loader(reader.read, self._loaded, threads, load_timeout, clock, self.counters)
        self._quarantine = Quarantine(clock)
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        ahead = Prefetch(self._forecast, self._host, self._residency, self._is_refused, source.is_remote)
        self._prefetch = ahead if prefetch else None
        before = asked_before or {}
        self._host.seed(sorted(before, key=before.__getitem__, reverse=True))
        self._requests = count()
        self._waiting: OrderedDict[Lease, None] = OrderedDict()  # not placed and not released, request by request
        self._pins = Pins(source.registrations)

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

    def place(self, *leases: Lease, urgent: bool = False) -> bool:
        """Brings the adapters of one request to the device, all or none. Engine thread only.

        Room is made by evicting adapters that no placed lease uses and nobody pinned, least recently used first and no
        more than needed; unless it is urgent, none that others wait for and that has not been there for `min_residency`
        seconds. A mix that could not fit even so gets its error here.

        Returns:
            True when all are placed: they stay where they are until released. False when one is not loaded, has failed,
            or there is no room now.

        Raises:
            RuntimeError, MemoryError: a write failed, and took the pool with it.
        """
        with self._locked():
            writes = self._reserve(leases, urgent)
        if writes is None:
            return False
        errors = [(residence, error) for residence, adapter in writes if (error := self._write(residence, adapter))]
        if errors:
            self.displace(*leases)
            for residence, error in errors:
                self._fail_write(residence, error)
        return not errors

    def fits(self, leases: Iterable[Lease], without: Iterable[Lease]) -> bool:
        """Whether an urgent `place` would find room for one request's leases, if these others, all placed, gave way."""
        leases = list(leases)
        with self._lock:
            if any(lease.released or lease.error or not self._here(lease.residence) for lease in leases):
                return False
            members = [lease.residence for lease in leases]
            return self._residency.fits(members, [lease.residence for lease in without])

    def displace(self, *leases: Lease) -> None:
        """Takes the device's pages back from placed leases: they wait again, until they are placed. Engine thread only.

        The pages stay as they are until room is needed.
        """
        with self._lock:
            placed = [lease for lease in leases if lease.placed is not None and not lease.released]
            self._residency.displace([lease.residence for lease in placed])
            for lease in placed:
                lease.placed = None
                self._waiting[lease] = None

    def reset(self) -> None:
        """All that was on the device is lost, while no lease is placed: whoever waits for it waits for it anew.

        Engine thread only.
        """
        with self._lock:
            for residence in self._residency.reset():
                self._fetch(residence, again=True)
            self._begin_reads()

    def prefetch(self) -> bool:
        """Brings what will probably be asked for closer. Engine thread only, when it has nothing else to do.

        Returns:
            True when pages were written, so that there may be more to do.
        """
        with self._lock:
            self._read_ahead()
            found = self._prefetch.next_write() if self._prefetch else None
        if found is None:
            return False
        if error := self._write(*found):
            self._fail_write(found[0], error)
            return False
        self.counters.prefetched("device", found[0].digest)
        return True

    def is_ready(self, lease: Lease) -> bool:
        """See `Lease.ready`."""
        with self._lock:
            self._give_up_hanging_reads()
            return self._here(lease.residence)

    def wait(self, lease: Lease, timeout: float | None) -> bool:
        """See `Lease.wait`."""
        end = inf if timeout is None else time.monotonic() + timeout
        with self._settled:
            while not self._settled.wait_for(lambda: self._has_settled(lease), min(LOOK, end - time.monotonic())):
                if time.monotonic() >= end:
                    return False
        return True

    def release(self, lease: Lease) -> None:
        """See `Lease.release`."""
        with self._locked():
            if lease.released:
                return
            lease.released = True
            self._waiting.pop(lease, None)
            residence = lease.residence
            free = self._residency.release(residence, placed=lease.placed is not None)
            if free and self._residency.get(lease.digest) is None:
                self._loader.cancel(lease.digest)
                self._host.unhold(lease.digest)
                if residence.unloading:
                    self._drop(lease.digest)
            self._begin_reads()

    def load(self, name: str, digest: str, given_up: threading.Event | None = None) -> None:
        """Brings an adapter into host memory and waits for it, also one whose last load failed just before.

        Not for the engine thread. Who does not want it any more sets `given_up`.

        Raises:
            AdapterUnavailable: it cannot be loaded.
            CancelledError: it was given up.
        """
        with self._lock:
            self._quarantine.forget(digest)
        [lease] = self.acquire((name, digest))
        try:
            while not lease.wait(LOOK):
                if given_up and given_up.is_set():
                    raise CancelledError
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
        self._pins.drop(digest)
        self._follow_pins()
        with self._locked():
            self._quarantine.forget(digest)
            self._forecast.forget(digest)
            self._residency.unload(digest)
            if not self._host.held(digest):
                self._drop(digest)

    def pin(self, name: str, pinned: bool) -> None:
        """What a pinned name stands for, once on the device, stays there until the name is unpinned or unloaded.

        The pin follows its name: to the new adapter when it is replaced, and away when it is removed.
        """
        self._pins.set(name, pinned)
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
        """Waits for the reads that have begun, unless they hang, and begins no others; what waits for one fails."""
        with self._lock:
            self._loader.stop()
        self._loader.join()
        with self._settled:
            for residence in list(self._residency.all()):
                if not self._here(residence):
                    self._give_up(residence.digest)
            self._settled.notify_all()

    def validate(self) -> None:
        """Raises RuntimeError when a condition of `Residency` does not hold, or one of these two.

        * What host memory holds for a request is LOADING.
        * What is LOADING is held there, or will be read.
        """
        with self._lock:
            self._residency.validate()
            loading = {residence.digest for residence in self._residency.all() if residence.pages is None}
            held = {digest for digest in self._host.digests() if self._host.held(digest)}
            if not held <= loading:
                raise RuntimeError(f"host memory holds what nobody waits for: {sorted(held - loading)}")
            if lost := [digest for digest in loading - held if not self._loader.expects(digest)]:
                raise RuntimeError(f"awaited and never read: {sorted(lost)}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock, and frees what leaves host memory after it: the system takes its time to take memory back."""
        with self._lock:
            try:
                yield
            finally:
                left = self._host.take_removed()
        left.clear()

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

    def _drop(self, digest: str) -> None:
        """Forgets the bytes of an adapter that is to be unloaded, those too that are just being read."""
        self._host.drop(digest)
        self._loader.unload(digest)

    def _here(self, residence: Residence) -> bool:
        return residence.pages is not None or (residence.failure is None and self._host.held(residence.digest))

    def _follow_pins(self) -> None:
        self._pins.follow(self._pin)

    def _pin(self, digests: frozenset[str]) -> None:
        with self._lock:
            self._residency.pinned = digests

    def _has_settled(self, lease: Lease) -> bool:
        self._give_up_hanging_reads()
        return self._here(lease.residence) or lease.error is not None

    def _give_up_hanging_reads(self) -> None:
        """Whoever waits looks at the clock, so that nobody has to watch, and whether there is a thread to read."""
        lost = [*self._loader.overdue(), *self._loader.hopeless()]
        for digest in lost:
            self._give_up(digest)
        if lost or self._loader.stalled:
            self._begin_reads()
        if lost:
            self._settled.notify_all()

    def _give_up(self, digest: str) -> None:
        """Fails those who wait for a read."""
        failure, waiting = self._refusal(digest, loaded=False), self._awaited(digest)
        if failure and waiting:
            self._residency.fail(waiting, failure)

    def _lease(self, request: int, name: str, digest: str) -> Lease:
        residence = self._residency.acquire(digest)
        self._forecast.asked(digest, self._clock())
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
        members = takewhile(lambda lease: oldest and lease.request == oldest.request, self._waiting)
        self._loader.start(urgent=[lease.digest for lease in members], room=self._host.has_room)

    def _read_ahead(self) -> None:
        if self._prefetch and self._loader.idle and not self._loader.refusal():
            digest = self._prefetch.next_read()
            if digest is not None:
                self._loader.read_ahead(digest)

    def _is_refused(self, digest: str) -> bool:
        return self._quarantine.refusal(digest) is not None or self._loader.hangs(digest)

    def _fetch(self, residence: Residence, *, again: bool = False) -> None:
        """Sees to it that a residence without pages gets its adapter into host memory, and that it stays there."""
        digest = residence.digest
        adapter = self._host.get(digest)
        if failure := self._refusal(digest, loaded=adapter is not None):
            self.counters.not_loaded("refused")
            self._residency.fail(residence, failure)
        elif adapter is not None:
            residence.counts = adapter.counts
            self._host.hold(digest)
        else:
            self._loader.request(digest, again=again)

    def _refusal(self, digest: str, *, loaded: bool) -> Failure | None:
        """Why an adapter cannot be had, as far as that is known before it is tried."""
        if failure := self._quarantine.refusal(digest):
            return failure
        if loaded:
            return None
        if self._loader.hangs(digest):
            reason = f"its read has not ended within {self._loader.timeout:g} s"
            return self._quarantine.failed(digest, Failure(AdapterUnreachable, reason))
        return Failure(AdapterUnreachable, reason) if (reason := self._loader.refusal() or "") else None

    def _loaded(self, digest: str, result: HostAdapter | Exception) -> None:
        """On a loader thread: a read has ended."""
        with self._locked():
            waiting = self._awaited(digest)
            reading = self._loader.finish(digest)
            if isinstance(result, Exception):
                failure = self._quarantine.failed(digest, Failure.of(result))
                if waiting:
                    self._residency.fail(waiting, failure)
            else:
                self._quarantine.forget(digest)
                self._take_in(digest, result, waiting, reading)
            self._begin_reads()
            self._read_ahead()
            self._settled.notify_all()
        if waiting or reading.ahead:
            self.on_ready(digest)

    def _awaited(self, digest: str) -> Residence | None:
        """Who waits for a read. What is on the device does not, whatever is read."""
        residence = self._residency.get(digest)
        return residence if residence and residence.pages is None else None

    def _take_in(self, digest: str, adapter: HostAdapter, waiting: Residence | None, reading: Reading) -> None:
        if waiting:
            self._host.put(digest, adapter, held=True)
            waiting.counts = adapter.counts
        elif reading.unloaded:
            return
        elif not reading.ahead:
            self._host.put(digest, adapter, held=False)
        elif self._host.offer(digest, adapter):
            self.counters.prefetched("host", digest)

    def _reserve(self, leases: tuple[Lease, ...], urgent: bool) -> list[tuple[Residence, HostAdapter]] | None:
        """Gives every lease a reference and its residence pages; returns what must be written into them."""
        members = [lease.residence for lease in leases]
        arriving = [lease for lease in leases if lease.placed is None]
        if any(lease.released or lease.error or not self._here(lease.residence) for lease in leases):
            return None
        if reason := self._residency.misfit(members):
            for lease in leases:
                lease.misfit = reason
            return None
        absent = [member for member in dict.fromkeys(members) if member.pages is None]
        evicted = self._residency.place([lease.residence for lease in arriving], self._clock(), urgent=urgent)
        if evicted is None:
            return None
        writes = [(member, adapter) for member in absent if (adapter := self._host.get(member.digest))]
        for lease in arriving:
            lease.placed = lease.residence.pages
            self._waiting.pop(lease, None)
        for member in absent:
            self._host.unhold(member.digest)
        for residence in evicted:
            if residence.waiters:
                self._fetch(residence, again=True)
        self._begin_reads()
        return writes

    def _write(self, residence: Residence, adapter: HostAdapter) -> Exception | None:
        """Dispatches a page write. Only this thread gives pages away, so they are still this residence's own.

        Returns:
            What went wrong.
        """
        residence.traits = adapter.traits
        try:
            with self.counters.load(residence.digest, "host") as load:
                self._pool.write(residence.pages or {}, adapter.pages)
                load.lap("write")
                load.nbytes = adapter.nbytes
        except (MemoryError, RuntimeError) as error:  # memory ran out, or what else JAX reports
            return error
        return None

    def _fail_write(self, residence: Residence, error: Exception) -> None:
        """Fails those who wait for what could not be written. Raises the error if the pool went with it."""
        with self._lock:
            failure = self._quarantine.failed(residence.digest, Failure.of(error))
            self._residency.fail(residence, failure)
        if self._pool.lost:
            raise error
