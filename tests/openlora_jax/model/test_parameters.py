"""How a base's weights come to lie as a step takes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openlora_jax.model.checkpoint import read_weights, write_weights
from openlora_jax.model.parameters import MATRICES, Parameters
from openlora_jax.model.stored import parts
from openlora_jax.model.weights import random_weights, weight_table
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.quantize import quantize
from pallas_kernels.quantized import QuantizedMatrix
from pallas_kernels.quantized_linear.layers import stacked
from tests.openlora_jax.tiny import MODEL

FEW = replace(MODEL, quantization=Quantization(format="int8", group=32))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The weights of `FEW`."""
    values, arrays = random_weights(MODEL, seed=0), dict[str, Any]()
    for name, weight in weight_table(FEW).items():
        how = weight.quantization
        arrays |= parts(name, quantize(values[name], how) if how else values[name])
    write_weights(tmp_path, arrays)
    return tmp_path


def test_one_kind_of_matrix_is_in_memory_twice(base: Path) -> None:
    """What was arranged before is there once, and what comes after has not been read."""
    before, own, others = {id(array) for array in jax.live_arrays()}, list[int](), list[int]()

    def layers(weights: tuple[QuantizedMatrix, ...]) -> tuple[QuantizedMatrix, ...]:
        own.append(sum(array.nbytes for array in jax.tree.leaves(weights)))
        others.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in before) - own[-1])
        return stacked(weights)

    found = Parameters.read(base, FEW, "float32", layers)
    assert [each - others[0] for each in others] == [sum(own[:place]) for place in range(len(MATRICES))]
    read = read_weights(base, FEW, "float32")
    for kind in MATRICES:
        [matrix] = getattr(found, kind)
        for layer in range(FEW.num_layers):
            jax.tree.map(
                lambda array, one, layer=layer: np.testing.assert_array_equal(array[layer], one),
                matrix,
                read[f"layers.{layer}.{kind}.weight"],
            )


def test_the_files_are_closed_before_anybody_hears_of_a_failure(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = list[ocp.Checkpointer]()

    def close(checkpointer: ocp.Checkpointer) -> None:
        original(checkpointer)
        closed.append(checkpointer)

    def layers(weights: tuple[QuantizedMatrix, ...]) -> tuple[QuantizedMatrix, ...]:
        raise MemoryError

    original = ocp.Checkpointer.close
    monkeypatch.setattr(ocp.Checkpointer, "close", close)
    with pytest.raises(MemoryError) as failure:
        Parameters.read(base, FEW, "float32", layers)
    assert failure.tb, "which keeps everything that the reader had"
    assert len(closed) == 1
