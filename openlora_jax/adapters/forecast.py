"""How often each adapter is asked for: exponentially weighted counts, and what they say will be asked for again."""

from collections.abc import Iterable, Iterator, Mapping
from heapq import nlargest
from math import log2

HALF_LIFE = 600.0
"""Seconds after which a request counts half."""

MAX_DIGESTS = 4096
"""Digests that are remembered; when there are more, half of them, those with the fewest requests, are forgotten."""


class Forecast:
    """Weighted requests by digest. Not thread-safe: the owner calls every method under its lock.

    A score is the logarithm of the weighted count, moved to a common time: it changes only with a request, and the
    order of scores is that of the counts at any time.
    """

    def __init__(self, before: Mapping[str, float] | None = None, now: float = 0.0) -> None:
        """`before` are weighted requests by digest, as of `now`."""
        self._scores = {digest: now / HALF_LIFE + log2(count) for digest, count in (before or {}).items() if count > 0}
        self._forget_some()

    def asked(self, digest: str, now: float) -> None:
        """A request has come."""
        new = now / HALF_LIFE
        old = self._scores.get(digest)
        self._scores[digest] = new if old is None else max(old, new) + log2(1 + 2 ** -abs(old - new))
        self._forget_some()

    def count(self, digest: str, now: float) -> float:
        """Requests, each weighted by its age; 0 for a digest that is not remembered."""
        score = self._scores.get(digest)
        return 0.0 if score is None else 2 ** (score - now / HALF_LIFE)

    def most(self, digests: Iterable[str]) -> str | None:
        """Of these, the one that was asked for most; None if none is remembered."""
        return max(self._known(digests), key=self._scores.__getitem__, default=None)

    def ranked(self, digests: Iterable[str]) -> list[str]:
        """Of these, those that are remembered, the one that was asked for most first."""
        return sorted(self._known(digests), key=self._scores.__getitem__, reverse=True)

    def forget(self, digest: str) -> None:
        """Nothing is expected of a digest until it is asked for again."""
        self._scores.pop(digest, None)

    def _known(self, digests: Iterable[str]) -> Iterator[str]:
        return (digest for digest in digests if digest in self._scores)

    def _forget_some(self) -> None:
        if len(self._scores) > MAX_DIGESTS:
            kept = nlargest(MAX_DIGESTS // 2, self._scores.items(), key=lambda item: item[1])
            self._scores = dict(kept)
