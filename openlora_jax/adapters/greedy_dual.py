"""Which of many entries is worth the least: GreedyDual-Size-Frequency (Cherkasova, 1998)."""

from collections.abc import Container
from heapq import heapify, heappop, heappush
from itertools import count

Place = tuple[float, int]
"""An entry's value, and the number of the use that gave it."""


class GreedyDual:
    """Entries with values; a clock ages those that are no longer used.

    An entry's value is the clock at its last use plus what it is worth: how often it is used, times what it costs to
    get it back, divided by its size. The clock is the value of the last entry that had to leave. So a new entry stands
    above all that have left, and one that was worth much leaves too when it has long not been used.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._places: dict[str, Place] = {}
        self._heap: list[tuple[Place, str]] = []  # of all uses; only an entry's last one counts
        self._uses = count()

    def use(self, key: str, worth: float) -> None:
        """Values an entry, which may be a new one, anew."""
        place = self._places[key] = self._clock + worth, next(self._uses)
        heappush(self._heap, (place, key))
        if len(self._heap) > 2 * len(self._places):
            self._heap = [(place, key) for key, place in self._places.items()]
            heapify(self._heap)

    def remove(self, key: str) -> None:
        """Forgets an entry that leaves for another reason than its value."""
        del self._places[key]

    def least(self, spared: Container[str]) -> str | None:
        """The entry of the least value that is not spared, of equals the least recently used; None if there is none."""
        passed = []
        while self._heap:
            place, key = self._heap[0]
            current = self._places.get(key) == place
            if current and key not in spared:
                break
            heappop(self._heap)
            if current:
                passed.append((place, key))
        found = self._heap[0][1] if self._heap else None
        for each in passed:
            heappush(self._heap, each)
        return found

    def evict(self, key: str) -> None:
        """Forgets an entry that leaves for its value."""
        self._clock = max(self._clock, self._places.pop(key)[0])
