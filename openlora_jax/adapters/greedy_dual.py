"""Which of many entries is worth the least: GreedyDual-Size-Frequency (Cherkasova, 1998)."""

from collections.abc import Container


class GreedyDual:
    """Entries with values; a clock ages those that are no longer used.

    An entry's value is the clock at its last use plus what it is worth: how often it is used, times what it costs to
    get it back, divided by its size. The clock is the value of the last entry that had to leave. So a new entry stands
    above all that have left, and one that was worth much leaves too when it has long not been used.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._values: dict[str, float] = {}

    def use(self, key: str, worth: float) -> None:
        """Values an entry, which may be a new one, anew."""
        self._values.pop(key, None)
        self._values[key] = self._clock + worth

    def remove(self, key: str) -> None:
        """Forgets an entry that leaves for another reason than its value."""
        del self._values[key]

    def least(self, spared: Container[str]) -> str | None:
        """The entry of the least value that is not spared, of equals the least recently used; None if there is none."""
        return min((key for key in self._values if key not in spared), key=self._values.__getitem__, default=None)

    def evict(self, key: str) -> None:
        """Forgets an entry that leaves for its value."""
        self._clock = max(self._clock, self._values.pop(key))
