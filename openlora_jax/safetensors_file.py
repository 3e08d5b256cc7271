"""Safetensors files read with suspicion: the header is proved sound before any tensor is allocated.

The format: eight bytes (header length, little-endian), a JSON header (name -> dtype, shape, data_offsets), the data.
https://huggingface.co/docs/safetensors
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import open_regular, parse_json_object, read_exactly

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
MAX_NAME_BYTES = 256
MAX_DIMS = 3

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The element types that a checkpoint may use, by their safetensors names."""
WITH_INTEGERS: Mapping[str, np.dtype[Any]] = {**DTYPES, "I32": np.dtype("<i4")}
"""Of one whose matrices are quantised."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a header; its bytes are `[start, end)` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """An open file whose header has been checked; every tensor is read from the one descriptor that was checked.

    Attributes:
        tensors: the entries by name, in the order of their bytes.

    Args:
        path: the file.
        dtypes: the element types that it may use.

    Raises:
        BadCheckpoint: header or file too large, cut short or malformed; a dtype outside `dtypes`; names, dimensions or
            their number beyond the limits; offsets that overlap, leave gaps or leave the file. All problems at once.
    """

    def __init__(self, path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> None:
        self.path = path
        self._dtypes = dtypes
        self._file = open_regular(path)
        try:
            self.tensors = _read_header(path, self._file.fileno(), dtypes)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as a fresh array of its own dtype.

        Raises:
            BadCheckpoint: the file became shorter since it was opened.
        """
        info = self.tensors[name]
        return self._array(name, info.start, info.shape)

    def blocks(self, name: str, elements: int) -> Iterator[NDArray[Any]]:
        """The tensor in order, cut along its first dimension into arrays of about `elements`."""
        info = self.tensors[name]
        row = math.prod(info.shape[1:])
        step = max(1, elements // max(1, row))
        for first in range(0, info.shape[0], step):
            shape = (min(step, info.shape[0] - first), *info.shape[1:])
            yield self._array(name, info.start + first * row * self._dtypes[info.dtype].itemsize, shape)

    def _array(self, name: str, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
        array = np.empty(shape, self._dtypes[self.tensors[name].dtype])
        if not read_exactly(self._file, start, array):
            raise BadCheckpoint(self.path, f"became shorter while tensor {name} was read")
        return array

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_header(path: Path, descriptor: int, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, TensorInfo]:
    size = os.fstat(descriptor).st_size
    if size < 8:
        raise BadCheckpoint(path, f"has {size} bytes; not even the 8 of a safetensors header length")
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise BadCheckpoint(path, f"header of {length:,} bytes, more than the limit of {MAX_HEADER_BYTES:,}")
    if 8 + length > size:
        raise BadCheckpoint(path, f"header of {length:,} bytes in a file of {size:,}: cut short?")
    entries = parse_json_object(path, os.pread(descriptor, length, 8))
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise BadCheckpoint(path, f"{len(entries):,} tensors, more than the limit of {MAX_TENSORS:,}")
    parsed = [(name, _parse_entry(name, entry, 8 + length, dtypes)) for name, entry in entries.items()]
    _refuse(path, (info for _, info in parsed if isinstance(info, str)))
    tensors = sorted(
        ((name, info) for name, info in parsed if isinstance(info, TensorInfo)),
        key=lambda item: (item[1].start, item[1].end),
    )
    _refuse(path, _layout_problems(tensors, 8 + length, size))
    return dict(tensors)


def _parse_entry(name: str, entry: object, data_start: int, dtypes: Mapping[str, np.dtype[Any]]) -> TensorInfo | str:
    """The entry, or what is wrong with it."""
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"tensor name {name[:40]!r}...: more than the limit of {MAX_NAME_BYTES} bytes"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return f"tensor {name!r}: the entry must hold exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        return f"tensor {name!r}: dtype {str(dtype)[:40]} is not one of {', '.join(dtypes)}"
    if not _sizes(shape):
        return f"tensor {name!r}: the shape must be a list of sizes"
    if len(shape) > MAX_DIMS:
        return f"tensor {name!r}: {len(shape)} dimensions, more than the limit of {MAX_DIMS}"
    if not _sizes(offsets) or len(offsets) != 2:
        return f"tensor {name!r}: data_offsets must be two byte offsets"
    start, end = offsets
    need = math.prod(shape) * dtypes[dtype].itemsize
    if end - start != need:
        return f"tensor {name!r}: {dtype} {shape} needs {need:,} bytes, data_offsets give {end - start:,}"
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _layout_problems(tensors: list[tuple[str, TensorInfo]], data_start: int, size: int) -> Iterable[str]:
    """What breaks the rule that the tensors, in order, fill the file from the header to its end."""
    position = data_start
    for name, info in tensors:
        if info.start != position:
            yield f"tensor {name!r}: starts at byte {info.start:,}, the one before ends at {position:,}"
        position = info.end
    if position > size:
        yield f"tensors up to byte {position:,} in a file of {size:,}: cut short?"
    elif position < size:
        yield f"{size - position:,} bytes after the last tensor"


def _refuse(path: Path, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise BadCheckpoint(path, *found)
