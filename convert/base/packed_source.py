"""The packed matrices of GPTQ and AWQ as a source of tensors, code by code: no number is rounded anew.

A module's `qweight`, `qzeros` and `scales` stand for `w = scale (code - zero)`, all of them transposed: `[in, out]`.
Eight codes lie in a number of 32 bits: of GPTQ's `qweight` eight rows, elsewhere eight columns, of AWQ's in an order of
its own. https://github.com/ModelCloud/GPTQModel, https://github.com/casper-hansen/AutoAWQ
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.base.hf_packing import REMEDY, Packing
from convert.base.source import BLOCK_ELEMENTS, SafetensorsSource
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import Int4Matrix, QuantizedMatrix, dense
from openlora_jax.quantization.quantize import packed
from openlora_jax.safetensors_file import WITH_INTEGERS

CODES = 8
"""In a number of 32 bits."""
MIDDLE = 8
"""The zero point of all groups where they are symmetric."""
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies in each four bits, lowest first."""
PARTS = ("qweight", "qzeros", "scales", "g_idx")

Codes = NDArray[np.uint8]


class PackedSource:
    """See `TensorSource`. A packed matrix is one tensor, under the name that it had before.

    Raises:
        BadCheckpoint: tensors of a matrix that are missing, or whose shapes contradict each other.
    """

    def __init__(self, folder: Path, packing: Packing) -> None:
        self.path = folder
        self.quantization: Quantization | None = packing.quantization
        self._how = packing.quantization
        self._packing = packing
        self._files = SafetensorsSource(folder, WITH_INTEGERS)
        stored = self._files.shapes
        self._packed = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
        parts = {f"{stem}.{part}" for stem in self._packed for part in PARTS}
        self.shapes = {name: shape for name, shape in stored.items() if name not in parts}
        try:
            self.shapes |= {f"{stem}.weight": self._shape(stem) for stem in sorted(self._packed)}
        except BaseException:
            self.close()
            raise

    def _shape(self, stem: str) -> tuple[int, ...]:
        """Of the matrix; holds its tensors against each other."""
        found = self._files.shapes
        missing = [part for part in PARTS[:3] if f"{stem}.{part}" not in found]
        if missing:
            raise BadCheckpoint(self.path, f"{stem} has no {' and no '.join(missing)}")
        words = found[f"{stem}.qweight"]
        if len(words) != 2:
            raise BadCheckpoint(self.path, f"{stem}.qweight has {len(words)} dimensions, not 2")
        gptq = self._packing.method == "gptq"
        columns, rows = (words[0] * CODES, words[1]) if gptq else (words[0], words[1] * CODES)
        if rows % CODES:
            problem = f"{stem}.qweight has {rows} rows, whose zero points are not whole words of {CODES}"
            raise BadCheckpoint(self.path, problem)
        groups = -(-columns // self._how.group) if self._how.group else 1
        for part, shape in (("qzeros", (groups, rows // CODES)), ("scales", (groups, rows)), ("g_idx", (columns,))):
            if found.get(f"{stem}.{part}", shape) != shape:
                raise BadCheckpoint(
                    self.path, f"{stem}.{part} has shape {found[f'{stem}.{part}']}, qweight asks for {shape}"
                )
        return rows, columns

    def file_of(self, name: str) -> Path:
        stem = name.removesuffix(".weight")
        return self._files.file_of(f"{stem}.qweight" if stem in self._packed else name)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        if name.removesuffix(".weight") not in self._packed:
            yield from self._files.blocks(name)
            return
        for matrix in self._matrices(name.removesuffix(".weight")):
            yield np.asarray(dense(matrix))

    def packed(self, name: str, how: Quantization) -> Iterator[QuantizedMatrix] | None:
        if how != self._how or name.removesuffix(".weight") not in self._packed:
            return None
        return self._matrices(name.removesuffix(".weight"))

    def close(self) -> None:
        self._files.close()

    def _matrices(self, stem: str) -> Iterator[Int4Matrix]:
        """Rows of a module's matrix, in order. In memory are its codes as they are packed, and a block of them."""
        self._check_order(stem)
        scale = self._scale(stem)
        offset = self._offset(stem, scale)
        words, gptq = self._files.read(f"{stem}.qweight"), self._packing.method == "gptq"
        rows, columns = self.shapes[f"{stem}.weight"]
        step = CODES * max(1, BLOCK_ELEMENTS // columns // CODES)
        for first in range(0, rows, step):
            block, of_words = slice(first, first + step), slice(first // CODES, (first + step) // CODES)
            codes = _rows(words[:, block]) if gptq else self._columns(words[:, of_words])
            offset_block = None if offset is None else offset[block]
            yield Int4Matrix(packed(np.ascontiguousarray(codes.T)), scale[block], offset_block)

    def _scale(self, stem: str) -> NDArray[np.float16]:
        exact = self._files.read(f"{stem}.scales").T
        with np.errstate(over="ignore"):
            scale = np.ascontiguousarray(exact.astype(np.float16))
        if not np.array_equal(scale.astype(np.float32), exact.astype(np.float32), equal_nan=True):
            feature = f"a scale of {stem} in {exact.dtype} that float16 does not hold exactly"
            raise UnsupportedFeature(self.path, feature, REMEDY)
        return scale

    def _offset(self, stem: str, scale: NDArray[np.float16]) -> NDArray[np.float32] | None:
        zero = self._columns(self._files.read(f"{stem}.qzeros")).T + np.uint8(self._packing.zero)
        if self._how.offsets is not None:
            return -(scale.astype(np.float32) * zero.astype(np.float32))
        if (zero != MIDDLE).any():
            raise BadCheckpoint(self.path, f"{stem}.qzeros are not all {MIDDLE}, although sym is true")
        return None

    def _check_order(self, stem: str) -> None:
        """GPTQ may put columns into groups by their importance instead of by their place."""
        if f"{stem}.g_idx" not in self._files.shapes:
            return
        found = self._files.read(f"{stem}.g_idx")
        group = self._how.group or len(found)
        if not np.array_equal(found, np.arange(len(found)) // group):
            remedy = "use a checkpoint that was quantised with desc_act false"
            raise UnsupportedFeature(self.path, f"desc_act of {stem}, whose groups are no neighbours,", remedy)

    def _columns(self, words: NDArray[np.int32]) -> Codes:
        """Codes that lie eight columns in a number."""
        order = AWQ_COLUMNS if self._packing.method == "awq" else range(CODES)
        codes = np.empty((*words.shape, CODES), np.uint8)
        for place, column in enumerate(order):
            codes[:, :, column] = words.view(np.uint32) >> np.uint32(4 * place) & 15
        return codes.reshape(len(words), -1)


def _rows(words: NDArray[np.int32]) -> Codes:
    """Codes that lie eight rows in a number."""
    codes = np.empty((len(words), CODES, words.shape[1]), np.uint8)
    for place in range(CODES):
        codes[:, place] = words.view(np.uint32) >> np.uint32(4 * place) & 15
    return codes.reshape(-1, words.shape[1])
