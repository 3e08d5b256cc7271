"""Rows into examples, examples into batches."""

from itertools import islice

import numpy as np
import pytest

from openlora_jax.config import EngineConfig
from openlora_jax.engine.admission import Admission
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import parse_score
from openlora_jax.training.data import Example, batches, pack


class Letters:
    """A letter is a token; special ones go around a text if asked for."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [*([1] if special else []), *(ord(letter) - 90 for letter in text)]

    def encode_chat(self, messages: object) -> list[int]:
        return [5, 5]


ADMISSION = Admission(EngineConfig(max_model_len=8), vocab_size=50)


def example(**row: object) -> Example:
    return Example.of(parse_score(row), Letters(), ADMISSION, (2,))


@pytest.mark.parametrize(
    ("row", "due"),
    [
        ({"prompt": "ab", "completion": "cd"}, Example((1, 7, 8, 9, 10, 2), 3)),
        ({"messages": [{"role": "user", "content": "a"}], "completion": "c", "id": 4}, Example((5, 5, 9, 2), 2)),
        ({"prompt_ids": [3, 4], "completion_ids": [5]}, Example((3, 4, 5), 2)),
    ],
)
def test_a_text_is_learned_with_its_end(row: dict[str, object], due: Example) -> None:
    assert example(**row) == due


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "ab"}, "completion: is missing"),
        ({"prompt": "ab", "completion": ""}, "completion: is empty"),
        ({"prompt": "ab", "completion": "z" * 9}, "more than the 8 served"),
        ({"prompt_ids": [50], "completion": "a"}, "token id 50 is outside the vocabulary"),
        ({"prompt": "ab", "completion": "c", "adapter": "pirate"}, "adapter: is named by an example"),
        ({"prompt": "ab", "completions": "c"}, "write 'completion'"),
    ],
)
def test_rows_that_cannot_be_learned_from(row: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        example(**row)


def test_an_epoch_holds_every_example_once_neighbours_in_length_together() -> None:
    examples = [Example((n,) * n, 1) for n in range(2, 12)]
    epochs = batches(examples, 4, seed=0)
    orders = []
    for _ in range(3):
        groups = [sorted(batch.length[batch.length > 0].tolist()) for batch in islice(epochs, 3)]
        assert sorted(groups) == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
        orders.append(groups)
    assert orders[0] != orders[1] or orders[1] != orders[2]


def test_a_batch_is_padded_to_a_width_and_a_size() -> None:
    batch = pack([Example((3, 4, 5), 1), Example((6,) * 65, 60)], 3)
    assert batch.tokens.shape == (3, 128)
    assert batch.length.tolist() == [3, 65, 0]
    assert batch.completion.tolist() == [1, 60, 0]
    np.testing.assert_array_equal(batch.tokens[0, :4], [3, 4, 5, 0])
