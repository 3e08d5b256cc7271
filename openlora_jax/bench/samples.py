"""Repeated measurements of one thing, and what may be said of them."""

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Samples:
    """One arm's values, a round each, in `unit`."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> str:
        """Smallest to largest."""
        return f"{min(self.values):.1f} .. {max(self.values):.1f}"

    def ratio(self, other: "Samples") -> float:
        """The median over the rounds of this arm's value over the other's in the same round."""
        return median(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))
