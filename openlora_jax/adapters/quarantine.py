"""Adapters whose load failed: refused for a while, the longer the more often it has failed."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from openlora_jax.errors import (
    AdapterDamaged,
    AdapterOutOfMemory,
    AdapterUnavailable,
    AdapterUnreachable,
    BadCheckpoint,
)

FIRST_WAIT = 1.0
"""Seconds after a first failure; they double with each further one."""

LONGEST_WAIT = 60.0
"""Seconds, at most."""

MAX_DIGESTS = 1024
"""Failures that are remembered; the oldest are forgotten first."""

KINDS: tuple[tuple[type[Exception], type[AdapterUnavailable]], ...] = (
    (BadCheckpoint, AdapterDamaged),
    (FileNotFoundError, AdapterDamaged),
    (OSError, AdapterUnreachable),
    (MemoryError, AdapterOutOfMemory),
    (Exception, AdapterUnavailable),
)
"""What an exception of a load means to a request; the first row that fits counts."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an adapter cannot be had.

    Attributes:
        kind: of error that its requests get.
        reason: in words.
        retry_after: seconds until it is tried again for whoever asks; 0 where time alone does not help.
    """

    kind: type[AdapterUnavailable]
    reason: str
    retry_after: float = 0.0

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """What an exception of a load comes to."""
        reason = str(error) or type(error).__name__
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in reason:  # as JAX says that memory ran out
            return cls(AdapterOutOfMemory, reason)
        return cls(next(kind for cause, kind in KINDS if isinstance(error, cause)), reason)

    def error(self, name: str, digest: str) -> AdapterUnavailable:
        """For the request that named the adapter."""
        return self.kind(name, digest, self.reason, self.retry_after)


class Quarantine:
    """Failures by digest. Not thread-safe: the owner calls every method under its lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float, Failure]] = OrderedDict()  # how often, until when, why

    def failed(self, digest: str, failure: Failure) -> Failure:
        """A load has failed, perhaps again. Returns the failure, with the time until the next try."""
        times = self._failures.pop(digest, (0, 0.0, failure))[0]
        failure = replace(failure, retry_after=min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(times, 16)))
        self._failures[digest] = (times + 1, self._clock() + failure.retry_after, failure)
        if len(self._failures) > MAX_DIGESTS:
            self._failures.popitem(last=False)
        return failure

    def refusal(self, digest: str) -> Failure | None:
        """Why an adapter is not tried now; None if it may be."""
        if digest not in self._failures:
            return None
        _, until, failure = self._failures[digest]
        wait = until - self._clock()
        return replace(failure, retry_after=wait) if wait > 0 else None

    def forget(self, digest: str) -> None:
        """It was loaded, or somebody wants it tried anew."""
        self._failures.pop(digest, None)
