"""What to bring closer to the device while nobody needs the loaders or the engine: what was asked for most, into room
that is free. Nothing leaves for it, nothing is fetched from elsewhere, and on the device it is the first to leave.
"""

from collections.abc import Callable

from openlora_jax.adapters.forecast import Forecast
from openlora_jax.adapters.host_cache import HostAdapter, HostCache
from openlora_jax.adapters.residency import Residence, Residency


class Prefetch:
    """Not thread-safe: the owner calls every method under its lock."""

    def __init__(
        self,
        forecast: Forecast,
        host: HostCache,
        residency: Residency,
        refused: Callable[[str], bool],
        is_remote: Callable[[str], bool],
    ) -> None:
        """`refused` says whether a digest is not to be tried now, `is_remote` whether its read would fetch it."""
        self._forecast = forecast
        self._host = host
        self._residency = residency
        self._refused = refused
        self._is_remote = is_remote

    def next_read(self) -> str | None:
        """What to read into host memory, and is not on the device nor on its way there.

        The same digest is not named again before it was there and had to leave.
        """
        for digest in self._forecast.ranked(filter(self._could_be_read, self._host.could_return())):
            self._host.forget(digest)
            if not self._is_remote(digest):
                return digest
        return None

    def next_write(self) -> tuple[Residence, HostAdapter] | None:
        """What to write into free pages of the device, which it holds from now on."""
        digest = self._forecast.most(filter(self._could_be_placed, self._host.digests()))
        adapter = None if digest is None else self._host.get(digest)
        if digest is None or adapter is None:
            return None
        residence = self._residency.prefetch(digest, adapter.counts)
        return (residence, adapter) if residence else None

    def _could_be_read(self, digest: str) -> bool:
        return self._residency.get(digest) is None and not self._refused(digest)

    def _could_be_placed(self, digest: str) -> bool:
        return (
            self._residency.get(digest) is None
            and self._residency.has_free(self._host.counts(digest))
            and not self._refused(digest)
        )
