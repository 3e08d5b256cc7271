"""The weights of a base directory one at a time, for work that must not hold all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from numpy.typing import NDArray

from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import check_stored, write_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.stored import stored_arrays
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table


class StoredWeights:
    """The weights that `write_weights` wrote, held against the model before one is read.

    Raises:
        BadCheckpoint: the directory is damaged or holds another model's weights.
    """

    def __init__(self, base: Path, config: ModelConfig) -> None:
        self._path = (base / "weights").absolute()
        handler = ocp.PyTreeCheckpointHandler(use_zarr3=True)
        self._checkpointer = ocp.Checkpointer(handler)
        try:
            arrays = stored_arrays(weight_table(config), "float32")
            check_stored(self._path, handler.metadata(self._path).tree, arrays)
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def read(self, name: str) -> NDArray[Any]:
        """One array, as stored. Raises BadCheckpoint."""
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
        args = ocp.args.PyTreeRestore(item={name: 0}, restore_args=how, partial_restore=True)
        try:
            value: NDArray[Any] = self._checkpointer.restore(self._path, args=args)[name]
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error
        return value

    def _damaged(self, error: Exception) -> BadCheckpoint:
        return BadCheckpoint(self._path, f"cannot be restored ({str(error)[:200]}); convert the model again")


class NewWeights:
    """The weights of a base that is being made: what `write_weights` would write, given one after the other.

    Orbax takes all arrays at once. So it is given arrays of one element, and each is made anew with its own shape where
    orbax put it; the result is an orbax checkpoint like any other.
    """

    def __init__(self, base: Path, table: Mapping[str, Weight], dtype: Dtype) -> None:
        self._path = (base / "weights").absolute()
        arrays = stored_arrays(table, dtype)
        write_weights(base, {name: np.zeros([1] * len(array.shape), array.dtype) for name, array in arrays.items()})

    def write(self, name: str, value: NDArray[Any]) -> None:
        """Writes one array of the table's weights, whole. Raises OSError."""
        grid = {"name": "regular", "configuration": {"chunk_shape": value.shape}}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        metadata = {"shape": value.shape, "chunk_grid": grid, "data_type": value.dtype.name, "codecs": codecs}
        folder = {"driver": "file", "path": f"{self._path}/"}
        place = {"driver": "ocdbt", "base": folder, "path": f"{name}/"}
        try:
            array = ts.open(
                {"driver": "zarr3", "kvstore": place, "metadata": metadata}, create=True, delete_existing=True
            ).result()
            array.write(value).result()
        except ValueError as error:  # how tensorstore says that the disk is full
            raise OSError(str(error)[:200]) from error
