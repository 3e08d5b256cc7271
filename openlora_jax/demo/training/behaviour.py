"""What a demo adapter learns: examples to learn from, examples to be judged by, and the judge."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One user message and the answer that is wanted."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Behaviour:
    """One behaviour and the recipe of its adapter.

    `make_training` and `make_held_out` draw examples from disjoint templates and values. `is_right(example, text)`
    judges an answer. `instruction` is what the base is told, as system message, to see how far words alone take it.
    `lora` holds the arguments of `peft.LoraConfig`.
    """

    name: str
    make_training: Callable[[random.Random], Sequence[Example]]
    make_held_out: Callable[[random.Random], Sequence[Example]]
    is_right: Callable[[Example, str], bool]
    instruction: str
    max_new_tokens: int
    lora: dict[str, Any] = field(hash=False)
    learning_rate: float = 1e-3


def pick(rng: random.Random, items: Sequence[str]) -> str:
    return items[rng.randrange(len(items))]
