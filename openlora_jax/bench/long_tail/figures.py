"""What is said of many answers: quantiles, where the time went, what the tiers did, and whether a bound holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from openlora_jax.adapters.counters import Counts
from openlora_jax.bench.long_tail.client import STAGES, Answer


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed, interpolated; 0 of none."""
    return float(np.quantile(values, share)) if values else 0.0


def breakdown(answers: Iterable[Answer]) -> dict[str, float]:
    """Mean seconds by stage."""
    stages = [answer.stages for answer in answers]
    return {stage: fmean(each[stage] for each in stages) for stage in STAGES}


def slowest(answers: Sequence[Answer], share: float) -> list[Answer]:
    """That share of them, one at least, with the longest time to the first token."""
    ordered = sorted(answers, key=lambda answer: answer.ttft)
    return ordered[-max(1, round(share * len(ordered))) :]


@dataclass(frozen=True, slots=True)
class Loads:
    """What the tiers did in a while.

    Attributes:
        ended: loads that went well, by source.
        seconds: by stage of a load, all of them together.
        times: by stage of a load, how many.
    """

    ended: Mapping[str, int]
    seconds: Mapping[str, float]
    times: Mapping[str, int]

    @classmethod
    def between(cls, before: Counts, after: Counts) -> "Loads":
        def passed(stage: Any) -> tuple[float, int]:
            was, now = before.seconds.get(stage), after.seconds[stage]
            return now.total - (was.total if was else 0.0), sum(now.counts) - (sum(was.counts) if was else 0)

        stages = {str(stage): passed(stage) for stage in after.seconds}
        sources = [source for source, result in after.loads if result == "ok"]
        return cls(
            {str(source): after.loads[source, "ok"] - before.loads[source, "ok"] for source in sources},
            {stage: seconds for stage, (seconds, _) in stages.items()},
            {stage: times for stage, (_, times) in stages.items()},
        )

    @classmethod
    def together(cls, parts: Sequence["Loads"]) -> "Loads":
        sources = dict.fromkeys(source for part in parts for source in part.ended)
        stages = dict.fromkeys(stage for part in parts for stage in part.seconds)
        return cls(
            {source: sum(part.ended.get(source, 0) for part in parts) for source in sources},
            {stage: sum(part.seconds.get(stage, 0.0) for part in parts) for stage in stages},
            {stage: sum(part.times.get(stage, 0) for part in parts) for stage in stages},
        )

    def as_json(self) -> dict[str, Any]:
        """The mean seconds of each stage, and how many loads there were."""
        return {"ended": dict(self.ended), "mean_seconds": {stage: self.mean(stage) for stage in self.seconds}}

    def mean(self, stage: str) -> float:
        """Seconds of one; 0 if there was none."""
        times = self.times.get(stage, 0)
        return self.seconds[stage] / times if times else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """A figure that was promised, with its value in each round.

    Attributes:
        what: it is, in words.
        limit: that the median must keep.
        least: whether the limit is the smallest value allowed, and not the largest.
    """

    what: str
    values: tuple[float, ...]
    limit: float
    least: bool = False

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def holds(self) -> bool:
        return self.median >= self.limit if self.least else self.median <= self.limit

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "median": self.median,
            "values": list(self.values),
            "at least" if self.least else "at most": self.limit,
            "holds": self.holds,
        }
