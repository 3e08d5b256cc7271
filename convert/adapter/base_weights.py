"""The weights that an adapter's modules change, for what depends on both: one read at a time, and none without need."""

from functools import cached_property
from pathlib import Path

import numpy as np

from openlora_jax.adapters.factors import F32
from openlora_jax.adapters.modules import module_name
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.stored import joined, stored_arrays
from openlora_jax.model.streaming import StoredWeights
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.quantization.matrix import dense


class BaseWeights:
    """Of the base model that an adapter is converted for.

    Attributes:
        digest: of the base.
    """

    def __init__(self, base: Path, manifest: BaseManifest) -> None:
        """`manifest` is that of the directory `base`."""
        self.digest = manifest.digest
        self._base = base
        self._config = manifest.config

    def product(self, module: str, layer: int) -> F32:
        """The weight `[out, in]` of a linear module, `[vocabulary, width]` of the embedding. Raises BadCheckpoint."""
        name = f"{module_name(module, layer)}.weight"
        tied = module == "lm_head" and name not in self._rows
        return self._read(f"{module_name('embed_tokens', 0)}.weight" if tied else name)

    def delta_like(self, module: str, layer: int) -> F32:
        """The same as an adapter's delta lies, `[d_out, d_in]`: the embedding's is the other way round."""
        weight = self.product(module, layer)
        return weight.T if module == "embed_tokens" else weight

    def bias(self, module: str, layer: int) -> F32 | None:
        """What the base adds to the module's product, if anything. Raises BadCheckpoint."""
        name = f"{module_name(module, layer)}.bias"
        return self._read(name) if name in self._rows else None

    @cached_property
    def _stored(self) -> StoredWeights:
        return StoredWeights(self._base, self._config)

    @cached_property
    def _table(self) -> dict[str, Weight]:
        return weight_table(self._config)

    @cached_property
    def _rows(self) -> dict[str, tuple[str, slice]]:
        """Where each Hugging Face tensor is: a weight's name, and its rows of it."""
        table = self._table.items()
        return {name: (weight_name, rows) for weight_name, weight in table for name, rows in weight.rows.items()}

    def _read(self, name: str) -> F32:
        """A tensor, of a quantised base as the codes have it."""
        weight_name, rows = self._rows[name]
        one = {weight_name: self._table[weight_name]}
        arrays = {array: self._stored.read(array) for array in stored_arrays(one, "float32")}
        stored = joined(one, arrays)[weight_name]
        if one[weight_name].quantization is not None:
            stored = dense(stored)
        return np.asarray(stored[rows], np.float32)
