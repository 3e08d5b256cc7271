"""Names that are pinned, and what they stand for now; other processes may change that at any time."""

import threading
from collections.abc import Callable, Mapping

from openlora_jax.adapters.registry import Registration


class Pins:
    """Not for the engine thread: the registry's file may be read under its lock."""

    def __init__(self, registrations: Callable[[], Mapping[str, Registration]]) -> None:
        self._registrations = registrations
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def set(self, name: str, pinned: bool) -> None:
        """Pins a name, or ends that."""
        with self._lock:
            (self._names.add if pinned else self._names.discard)(name)

    def drop(self, digest: str) -> None:
        """Ends the pins of every name that stands for a digest."""
        with self._lock:
            self._names = {name for name, pinned in self._pinned().items() if pinned != digest}

    def follow(self, tell: Callable[[frozenset[str]], None]) -> None:
        """Tells the digests of the pinned names, in the order of the looks at them; names that are gone are forgotten.

        Raises:
            BadCheckpoint: something is pinned, and the registry that says what it stands for is damaged.
        """
        with self._lock:
            pinned = self._pinned()
            self._names = set(pinned)
            tell(frozenset(pinned.values()))

    def _pinned(self) -> dict[str, str]:
        registered = self._registrations() if self._names else {}
        return {name: registered[name].digest for name in self._names if name in registered}
