"""A base directory as a source: a converted or merged model, to be quantised or stored in another type."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from convert.base.source import BLOCK_ELEMENTS
from openlora_jax.errors import UnsupportedFeature
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.streaming import StoredWeights
from openlora_jax.model.weights import weight_table
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import QuantizedMatrix


class ConvertedSource:
    """See `TensorSource`.

    Raises:
        BadCheckpoint: the directory is damaged.
        UnsupportedFeature: the base is quantised.
    """

    quantization: Quantization | None = None

    def __init__(self, base: Path, config: ModelConfig) -> None:
        if config.quantization is not None:
            remedy = "convert what it was made from"
            raise UnsupportedFeature(base, f"converting {config.quantization} once more", remedy)
        self.path = base
        self._stored = StoredWeights(base, config)
        self._rows: dict[str, tuple[str, slice]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for weight_name, weight in weight_table(config).items():
            self._rows |= {name: (weight_name, rows) for name, rows in weight.rows.items()}
            self.shapes |= {name: (rows, *weight.shape[1:]) for name, rows in weight.sources}

    def file_of(self, name: str) -> Path:
        return self.path / "weights"

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        weight, rows = self._rows[name]
        tensor = self._stored.read(weight)[rows]
        step = max(1, BLOCK_ELEMENTS * len(tensor) // tensor.size)
        for first in range(0, len(tensor), step):
            yield tensor[first : first + step]

    def packed(self, name: str, how: Quantization) -> Iterator[QuantizedMatrix] | None:
        return None

    def close(self) -> None:
        """Nothing is open."""
