"""GGUF files read with suspicion: header and tensor table are proved sound before anything large is allocated.

The `gguf` package supplies the constants and the dequantisation; its own reader believes every length that a file
claims. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.untrusted import open_regular, read_exactly

MAX_HEADER_BYTES = 32 << 20
"""Of a large vocabulary with its merges it is 10 MB."""
MAX_KEYS = 4096
MAX_TENSORS = 20_000
MAX_STRING_BYTES = 1 << 20
MAX_ARRAY_ITEMS = 1 << 20
MAX_DIMS = 3

TENSOR_TYPES = {kind.value: kind.name for kind in GGMLQuantizationType}
SUPPORTED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")

SCALARS: Mapping[GGUFValueType, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor table: shape outermost first, as numpy and Hugging Face count; bytes `[start, end)`."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    end: int


class GgufFile:
    """An open GGUF file whose header has been checked; tensors are read from the one descriptor that was checked.

    Attributes:
        metadata: every key with its value: number, bool, string, or list of one of these.
        tensors: the tensor table, in the order of the file.

    Raises:
        BadCheckpoint: malformed, cut short, beyond a limit, repeated keys or tensors, or bytes that overlap.
        UnsupportedFeature: a version or a quantisation that is not read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            self.metadata, self.tensors = _Header(path, self._file.fileno()).read()
        except BaseException:
            self._file.close()
            raise

    def strings(self, key: str) -> list[str]:
        """A list of strings of the metadata. Raises BadCheckpoint if it is none."""
        values = self.metadata.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BadCheckpoint(self.path, f"{key} must be a list of strings")
        return values

    def blocks(self, name: str, elements: int) -> Iterator[NDArray[np.float32]]:
        """The tensor in order as float32, cut along its first dimension into arrays of about `elements` elements.

        Raises:
            BadCheckpoint: the file became shorter since it was opened.
        """
        tensor = self.tensors[name]
        for raw in self.raw_blocks(name, elements):
            values = dequantize(raw, tensor.kind)
            yield values.reshape((len(raw), *tensor.shape[1:]) if len(tensor.shape) > 1 else tensor.shape)

    def raw_blocks(self, name: str, elements: int) -> Iterator[NDArray[np.uint8]]:
        """The same as the bytes of the file, `[rows, bytes]`; a vector is one row."""
        tensor = self.tensors[name]
        rows, row_shape = (tensor.shape[0], tensor.shape[1:]) if len(tensor.shape) > 1 else (1, tensor.shape)
        row_bytes = (tensor.end - tensor.start) // rows
        step = max(1, elements // math.prod(row_shape))
        for first in range(0, rows, step):
            raw = np.empty((min(step, rows - first), row_bytes), np.uint8)
            if not read_exactly(self._file, tensor.start + first * row_bytes, raw):
                raise BadCheckpoint(self.path, f"became shorter while tensor {name} was read")
            yield raw

    def close(self) -> None:
        self._file.close()


class _Header:
    """One pass over the header. Every length is compared with its limit and with what is left of the file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self.position = 0
        self._stream = io.BufferedReader(io.FileIO(os.dup(descriptor)), 1 << 20)

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        with self._stream:
            self._stream.seek(0)
            if self._take(4) != b"GGUF":
                raise BadCheckpoint(self.path, "is not a GGUF file: it does not begin with GGUF")
            version = self._number(GGUFValueType.UINT32)
            if version not in (2, 3):
                raise UnsupportedFeature(self.path, f"GGUF version {version}", "convert it with a current llama.cpp")
            tensor_count = self._count("tensors", MAX_TENSORS)
            metadata = self._table("key", self._count("keys", MAX_KEYS), self._typed_value)
            entries = self._table("tensor", tensor_count, self._tensor)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in (1 << bit for bit in range(3, 17)):
            raise BadCheckpoint(self.path, f"alignment {alignment!r} is not a power of two from 8 to 65536")
        return metadata, self._placed(entries, alignment)

    def _take(self, length: int) -> bytes:
        if length > self.size - self.position:
            raise BadCheckpoint(self.path, f"{length:,} bytes needed at {self.position:,} of {self.size:,}: cut short?")
        if length > MAX_HEADER_BYTES - self.position:
            raise BadCheckpoint(self.path, f"a header beyond the limit of {MAX_HEADER_BYTES:,} bytes")
        self.position += length
        return self._stream.read(length)

    def _number(self, kind: GGUFValueType) -> Any:
        layout = SCALARS[kind]
        return layout.unpack(self._take(layout.size))[0]

    def _count(self, what: str, limit: int) -> int:
        count: int = self._number(GGUFValueType.UINT64)
        if count > limit:
            raise BadCheckpoint(self.path, f"{count:,} {what}, more than the limit of {limit:,}")
        return count

    def _string(self) -> str:
        text = self._take(self._count("bytes of a string", MAX_STRING_BYTES))
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadCheckpoint(self.path, f"a string before byte {self.position:,} is not UTF-8") from error

    def _table(self, what: str, count: int, read: Callable[[], Any]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for _ in range(count):
            name = self._string()
            if name in table:
                raise BadCheckpoint(self.path, f"{what} {name[:80]!r} occurs more than once")
            table[name] = read()
        return table

    def _kind(self) -> GGUFValueType:
        number = self._number(GGUFValueType.UINT32)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise BadCheckpoint(self.path, f"value type {number} before byte {self.position:,} is unknown") from error

    def _typed_value(self) -> Any:
        kind = self._kind()
        if kind != GGUFValueType.ARRAY:
            return self._value(kind)
        item = self._kind()
        if item == GGUFValueType.ARRAY:
            raise BadCheckpoint(self.path, "an array of arrays is no valid metadata of a language model")
        count = self._count("items of an array", MAX_ARRAY_ITEMS)
        return [self._value(item) for _ in range(count)]

    def _value(self, kind: GGUFValueType) -> Any:
        return self._string() if kind == GGUFValueType.STRING else self._number(kind)

    def _tensor(self) -> tuple[list[int], int, int]:
        """Dimensions (innermost first), type and offset, as they stand in the file."""
        dims = self._number(GGUFValueType.UINT32)
        if not 1 <= dims <= MAX_DIMS:
            raise BadCheckpoint(self.path, f"a tensor of {dims} dimensions; the limits are 1 and {MAX_DIMS}")
        shape = [self._number(GGUFValueType.UINT64) for _ in range(dims)]
        return shape, self._number(GGUFValueType.UINT32), self._number(GGUFValueType.UINT64)

    def _placed(self, entries: Mapping[str, tuple[list[int], int, int]], alignment: int) -> dict[str, GgufTensor]:
        """The tensors in the order of their bytes, which must follow each other with no more than padding between."""
        begin = position = _aligned(self.position, alignment)
        tensors, problems = dict[str, GgufTensor](), list[str]()
        for name, (shape, number, offset) in sorted(entries.items(), key=lambda item: item[1][2]):
            kind = self._supported(name, number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if min(shape) < 1 or shape[0] % block:
                problems.append(
                    f"tensor {name!r}: shape {shape[::-1]} does not divide into {kind.name} blocks of {block}"
                )
                continue
            end = begin + offset + math.prod(shape) // block * block_bytes
            if begin + offset != _aligned(position, alignment):
                problems.append(f"tensor {name!r}: at offset {offset:,}, not where the one before it ends")
            position = end
            tensors[name] = GgufTensor(kind, tuple(reversed(shape)), begin + offset, end)
        if position > self.size:
            problems.append(f"tensors up to byte {position:,} in a file of {self.size:,}: cut short?")
        if problems:
            raise BadCheckpoint(self.path, *problems)
        return tensors

    def _supported(self, name: str, number: int) -> GGMLQuantizationType:
        label = TENSOR_TYPES.get(number, str(number))
        if label not in SUPPORTED:
            remedy = f"the supported types are {', '.join(SUPPORTED)}; re-quantise with llama-quantize"
            raise UnsupportedFeature(self.path, f"type {label} of tensor {name[:80]!r}", remedy)
        return GGMLQuantizationType[label]


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
