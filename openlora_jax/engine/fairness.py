"""Who has had how much: served tokens by key, for sharing evenly between those who want more than there is."""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

MAX_IDLE = 1024
"""Keys remembered that have no request; the one that left first is forgotten first."""

Key = TypeVar("Key", bound=Hashable)


class VirtualTokens(Generic[Key]):
    """The counters of a virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).

    The key with the fewest served tokens goes first. A key that comes back is lifted to the least of those present, so
    nobody saves up service while away.
    """

    def __init__(self) -> None:
        self._served: OrderedDict[Key, int] = OrderedDict()
        self._requests: Counter[Key] = Counter()
        self._last = 0

    def __getitem__(self, key: Key) -> int:
        return self._served[key]

    def join(self, key: Key) -> None:
        """One more request of this key; `leave` takes it away."""
        if not self._requests[key]:
            present = [self._served[other] for other, count in self._requests.items() if count]
            self._served[key] = max(self._served.pop(key, 0), min(present, default=self._last))
        self._requests[key] += 1

    def leave(self, key: Key) -> None:
        self._requests[key] -= 1
        if self._requests[key]:
            return
        del self._requests[key]
        self._last = self._served[key]
        self._served.move_to_end(key)
        if len(self._served) > len(self._requests) + MAX_IDLE:
            del self._served[next(other for other in self._served if other not in self._requests)]

    def charge(self, key: Key, tokens: int) -> None:
        """These were served to one of its requests."""
        self._served[key] += tokens

    @property
    def busy(self) -> bool:
        """Whether any key has a request."""
        return bool(self._requests)
