"""The adapter cache and its leases, as the engine sees them."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.adapters.traits import Traits
from openlora_jax.errors import OpenLoraError


@runtime_checkable
class Lease(Protocol):
    """A hold on one adapter, from admission to the request's end.

    Attributes:
        digest: of the adapter's content.
        pages: where it is on the device; valid once it was placed.
        traits: how it acts; valid once it was placed.
        ready: it is in host memory or on the device.
        resident: it is on the device.
        error: why it cannot be served; None while it loads and when it is ready.
    """

    @property
    def digest(self) -> str: ...
    @property
    def pages(self) -> AdapterPages: ...
    @property
    def traits(self) -> Traits: ...
    @property
    def ready(self) -> bool: ...
    @property
    def resident(self) -> bool: ...
    @property
    def error(self) -> OpenLoraError | None: ...
    def release(self) -> None:
        """Gives the adapter up. Any thread, any number of times."""


@runtime_checkable
class Adapters(Protocol):
    """The adapter cache, as the engine sees it; it calls `on_ready` with a digest whose load has ended."""

    on_ready: Callable[[str], None]

    def acquire(self, *adapters: tuple[str, str]) -> list[Any]:
        """A lease on each adapter of one request, given by name and digest; starts their loads. Any thread."""

    def place(self, *leases: Any, urgent: bool = False) -> bool:
        """Brings the pages of one request's adapters to the device, all or none; False if there is no room now.

        Unless it is urgent, what others wait for keeps its place for some time.

        Engine thread only. Takes what `acquire` returned; a protocol cannot say so without a type parameter.
        """

    def fits(self, leases: Iterable[Any], without: Iterable[Any]) -> bool:
        """Whether an urgent `place` would find room for one request's leases, if these others were displaced."""

    def prefetch(self) -> bool:
        """Brings what will probably be asked for closer to the device. Engine thread only, when it has no work.

        Returns:
            Whether there may be more of this to do at once.
        """

    def displace(self, *leases: Any) -> None:
        """Takes the device's pages back from placed leases, which wait from now on. Engine thread only."""

    def reset(self) -> None:
        """All that was on the device is lost, while no lease is placed: whoever waits for it waits for it anew.

        Engine thread only.
        """
