"""One request's hold on one adapter, and where an adapter is, as told to others."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.adapters.residency import Residence
from openlora_jax.adapters.traits import Traits
from openlora_jax.errors import AdapterUnavailable, OpenLoraError


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


@runtime_checkable
class Leasing(Protocol):
    """Who gives leases; `AdapterCache` does."""

    def is_ready(self, lease: "Lease") -> bool: ...
    def wait(self, lease: "Lease", timeout: float | None) -> bool: ...
    def release(self, lease: "Lease") -> None: ...


class Lease:
    """Made by `AdapterCache.acquire`; any thread. The attributes but name and digest are for the cache alone.

    Attributes:
        request: number of the request, which the leases of one mix share.
        residence: of the adapter.
        placed: where the adapter is on the device, from `place` to `displace`.
        misfit: why the pool could not hold the mix even alone.
        released: whether it has ended.
    """

    def __init__(self, leasing: Leasing, request: int, name: str, residence: Residence) -> None:
        self.name = name
        self.digest = residence.digest
        self.request = request
        self.residence = residence
        self.placed: AdapterPages | None = None
        self.misfit: str | None = None
        self.released = False
        self._leasing = leasing

    @property
    def pages(self) -> AdapterPages:
        """Where the adapter is on the device; valid from `place` to `release`."""
        if self.placed is None:
            raise RuntimeError(f"the lease on {self.name!r} was not placed")
        return self.placed

    @property
    def traits(self) -> Traits:
        """How the adapter acts; valid from `place` on."""
        return self.residence.traits

    @property
    def ready(self) -> bool:
        """Whether it is in host memory or on the device, so that `place` may succeed."""
        return self._leasing.is_ready(self)

    @property
    def resident(self) -> bool:
        """Whether it is on the device."""
        return self.residence.pages is not None

    @property
    def error(self) -> OpenLoraError | None:
        """Why it cannot be served; None while it loads and when it is ready."""
        if self.misfit is not None:
            return AdapterUnavailable(self.name, self.digest, self.misfit)
        failure = self.residence.failure
        return failure.error(self.name, self.digest) if failure else None

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until it is ready or has failed, at most `timeout` seconds; False when neither came true."""
        return self._leasing.wait(self, timeout)

    def release(self) -> None:
        """Gives the adapter up; again does nothing. Drop what a dispatched step still yields for this request."""
        self._leasing.release(self)
