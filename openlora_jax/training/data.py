"""Examples to learn from: a prompt, and the completion that is wanted. Rows of them, as `openlora score` takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from openlora_jax.arrays import AnyArray
from openlora_jax.engine.admission import Admission
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import ScoreInput, Tokenizer

WIDTH = 64
"""Batches are padded to multiples of this many tokens, each of which is a program to compile."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids; those from `completion` on are learned."""

    tokens: tuple[int, ...]
    completion: int

    @classmethod
    def of(cls, row: ScoreInput, tokenizer: Tokenizer, admission: Admission, end: tuple[int, ...]) -> "Example":
        """A row's prompt and completion. A text ends with `end`, so that the model learns to end; ids are verbatim.

        Raises:
            InvalidRequest: it names an adapter, is empty, longer than what is served, or outside the vocabulary.
        """
        if row.mix:
            raise InvalidRequest("adapter", "is named by an example to learn from; leave it out")
        request = admission.score(row.request(tokenizer))
        ended = end if isinstance(row.completion, str) else ()
        return cls(request.prompt_ids + request.completion_ids + ended, len(request.prompt_ids))


class Batch(NamedTuple):
    """Examples side by side, padded with tokens that mean nothing; one of length 0 is padding, too.

    Attributes:
        completion: where each example's completion begins.
    """

    tokens: Int[AnyArray, "T L"]
    length: Int[AnyArray, "T"]
    completion: Int[AnyArray, "T"]


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch without end, each in another order; neighbours in length share a batch."""
    generator = np.random.default_rng(seed)
    while True:
        shuffled = [examples[index] for index in generator.permutation(len(examples))]
        by_length = sorted(shuffled, key=lambda example: len(example.tokens))
        groups = [by_length[first : first + size] for first in range(0, len(by_length), size)]
        for index in generator.permutation(len(groups)):
            yield pack(groups[index], size)


def pack(examples: Sequence[Example], size: int) -> Batch:
    """A batch of `size`, some of which may be padding."""
    width = -(-max(len(example.tokens) for example in examples) // WIDTH) * WIDTH
    batch = Batch(np.zeros((size, width), np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32))
    for row, example in enumerate(examples):
        batch.tokens[row, : len(example.tokens)] = example.tokens
        batch.length[row], batch.completion[row] = len(example.tokens), example.completion
    return batch
