"""How long things take here, measured as they happen: exponentially weighted means, in seconds; 0 while unknown."""

WEIGHT = 0.2
"""Of the newest measurement."""


class Rates:
    """Engine thread only.

    Attributes:
        chunk: one chunk of known tokens, beside the decode step of its iteration.
        load: from a submission to its adapters in host memory, where they were not there.
        idle_load: the same of an idle engine, which knows at once that they are there.
        turn: from the end of one request to that of the next, while others wait.
    """

    def __init__(self) -> None:
        self.chunk = 0.0
        self.load = 0.0
        self.idle_load = 0.0
        self.turn = 0.0
        self._steps: dict[int, float] = {}
        self._last_end: float | None = None

    def step(self, rows: int) -> float:
        """A decode step of so many rows, or of the most below them that were measured."""
        return self._steps.get(max((measured for measured in self._steps if measured <= rows), default=0), 0.0)

    def iterated(self, seconds: float, *, chunk: bool, rows: int) -> None:
        """One iteration with a chunk or none and a decode step of so many rows or none."""
        if not chunk:
            self._steps[rows] = _mean(self._steps.get(rows, 0.0), seconds)
        elif not rows or self.step(rows):  # else nobody knows which part of it the step is
            self.chunk = _mean(self.chunk, max(0.0, seconds - self.step(rows)))

    def loaded(self, seconds: float, *, idle: bool) -> None:
        self.load = _mean(self.load, seconds)
        if idle:
            self.idle_load = _mean(self.idle_load, seconds)

    def ended(self, now: float, *, others_wait: bool) -> None:
        """A request that had started has ended."""
        if self._last_end is not None:
            self.turn = _mean(self.turn, now - self._last_end)
        self._last_end = now if others_wait else None


def _mean(mean: float, value: float) -> float:
    return mean + WEIGHT * (value - mean) if mean else value
