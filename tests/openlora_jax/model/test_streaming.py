from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import read_weights, write_weights
from openlora_jax.model.streaming import NewWeights, StoredWeights
from openlora_jax.model.weights import random_weights, weight_table
from tests.openlora_jax.tiny import MODEL


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_written_one_by_one_are_a_base_like_any_other(tmp_path: Path, dtype: Dtype) -> None:
    stored = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    values = {name: value.astype(stored) for name, value in random_weights(MODEL, seed=0).items()}
    written = NewWeights(tmp_path, weight_table(MODEL), dtype)
    for name, value in values.items():
        written.write(name, value)
    for name, read in read_weights(tmp_path, MODEL, dtype).items():
        assert read.dtype == dtype
        np.testing.assert_array_equal(np.asarray(read), values[name])


def test_weights_are_read_one_by_one_as_they_are_stored(tmp_path: Path) -> None:
    values = {name: value.astype(ml_dtypes.bfloat16) for name, value in random_weights(MODEL, seed=0).items()}
    write_weights(tmp_path, values)
    stored = StoredWeights(tmp_path, MODEL)
    for name, value in values.items():
        assert stored.read(name).dtype == value.dtype
        np.testing.assert_array_equal(stored.read(name), value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path, random_weights(MODEL, seed=0))
    with pytest.raises(BadCheckpoint, match="another model's weights"):
        StoredWeights(tmp_path, replace(MODEL, hidden_size=64))
    with pytest.raises(BadCheckpoint, match="convert the model again"):
        StoredWeights(tmp_path / "nowhere", MODEL)


def test_a_damaged_weight_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    write_weights(tmp_path, random_weights(MODEL, seed=0))
    stored = StoredWeights(tmp_path, MODEL)
    for file in (tmp_path / "weights").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"weights: cannot be restored"):
        stored.read("embed.weight")
