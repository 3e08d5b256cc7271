"""The committed answers of peft and transformers, and the small checkpoints that they are for."""

import json
from dataclasses import dataclass
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"
BOUND = 1e-3
"""Largest error of a log-probability."""
MOVED = 0.1
"""Every adapter moves some log-probability by at least this much: a test that ignores it cannot pass."""

Scores = list[list[float]]


@dataclass(frozen=True)
class Row:
    """A prompt and the completion that is scored after it, as token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt greedily, and the log-probability of each token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Goldens:
    """Log-probabilities per case: one list per row, one number per completion token. Of ensembles, continuations."""

    rows: tuple[Row, ...]
    bases: dict[str, Scores]
    adapters: dict[str, Scores]
    mixes: dict[str, Scores]
    ensembles: dict[str, list[Continuation]]

    @classmethod
    def load(cls) -> "Goldens":
        fields = json.loads((GOLDENS / "logprobs.json").read_text())
        rows = tuple(Row(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in fields.pop("rows"))
        ensembles = {
            name: [Continuation(tuple(row["token_ids"]), tuple(row["logprobs"])) for row in case]
            for name, case in fields.pop("ensembles").items()
        }
        return cls(rows, **fields, ensembles=ensembles)

    def save(self) -> None:
        """Writes the file with a line per row and case, so that a change shows as the lines that changed."""
        rows = _lines([json.dumps(vars(row)) for row in self.rows])
        groups = [f'"rows": [\n{rows}\n]']
        for group in ("bases", "adapters", "mixes"):
            cases = _lines([f"{json.dumps(name)}: {_rounded(scores)}" for name, scores in getattr(self, group).items()])
            groups.append(f'"{group}": {{\n{cases}\n}}')
        cases = _lines([f"{json.dumps(name)}: {_continued(case)}" for name, case in self.ensembles.items()])
        groups.append(f'"ensembles": {{\n{cases}\n}}')
        (GOLDENS / "logprobs.json").write_text("{\n" + ",\n".join(groups) + "\n}\n")


def base_directory(name: str) -> Path:
    return GOLDENS / "bases" / name


def adapter_directory(name: str) -> Path:
    return GOLDENS / "adapters" / name


def max_difference(left: Scores, right: Scores) -> float:
    """The largest |difference| of two lists of rows; rows of different lengths raise ValueError."""
    pairs = [zip(a, b, strict=True) for a, b in zip(left, right, strict=True)]
    return max(abs(a - b) for pair in pairs for a, b in pair)


def _lines(items: list[str]) -> str:
    return ",\n".join(items)


def _rounded(scores: Scores) -> str:
    return json.dumps([[round(value, 6) for value in row] for row in scores])


def _continued(case: list[Continuation]) -> str:
    rows = [{"token_ids": each.token_ids, "logprobs": [round(value, 6) for value in each.logprobs]} for each in case]
    return json.dumps(rows)
