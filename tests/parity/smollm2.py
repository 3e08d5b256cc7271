"""SmolLM2-135M-Instruct: its committed answers, and the adapters that they are for, made from seeds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parity.goldens import GOLDENS, Row
from tests.parity.random_adapter import linear_shapes, write_random_adapter

LAYERS = 30
SHAPES = linear_shapes(hidden=576, q=576, kv=192, mlp=1536)
SEED = 7
SIZE = 0.3

ADAPTERS: dict[str, dict[str, int]] = {
    "rank_16_all": {module.split(".")[-1]: 16 for module in SHAPES},
    "ranks_mixed": {"q_proj": 8, "k_proj": 1, "v_proj": 17, "o_proj": 2, "down_proj": 64},
    "rank_128": {"q_proj": 128, "v_proj": 128},
}
"""The rank of each adapted module."""
MIX = {"rank_16_all": 0.3, "ranks_mixed": 0.8, "rank_128": -0.5}
ADAPTED_ROWS = 4
"""Adapters and the mix are scored on the first so many rows."""


@dataclass(frozen=True)
class Prompt:
    """A row and the text it comes from: `source` holds `prompt` (raw text) or `messages` (for the chat template)."""

    source: dict[str, Any]
    completion: str
    row: Row
    logprobs: list[float]
    greedy: list[bool | None]
    """Whether each token is the most likely one; None where the two best are too close to say."""


@dataclass(frozen=True)
class SmolLM2Goldens:
    prompts: tuple[Prompt, ...]
    adapters: dict[str, list[list[float]]]
    mix: list[list[float]]

    @classmethod
    def load(cls) -> "SmolLM2Goldens":
        fields = json.loads((GOLDENS / "smollm2.json").read_text())
        prompts = []
        for prompt in fields["prompts"]:
            row = Row(tuple(prompt.pop("prompt_ids")), tuple(prompt.pop("completion_ids")))
            prompts.append(Prompt(row=row, **prompt))
        return cls(tuple(prompts), fields["adapters"], fields["mix"])


def write_adapters(directory: Path) -> dict[str, Path]:
    """Writes every adapter of `ADAPTERS` below `directory`."""
    for index, (name, ranks) in enumerate(ADAPTERS.items()):
        write_random_adapter(directory / name, SHAPES, ranks, layers=LAYERS, size=SIZE, seed=SEED + index)
    return {name: directory / name for name in ADAPTERS}
