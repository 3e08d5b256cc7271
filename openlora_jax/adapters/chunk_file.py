"""The file of one array of an artifact: read in one call, into memory laid out as a page write takes it."""

import os
import stat
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import read_exactly

Memory = np.ndarray[Any, np.dtype[np.uint8]]
"""Bytes."""

ALIGNMENT = 64
"""Bytes; XLA takes an array that begins at a multiple as it lies, any other it copies first."""


class FileIdentity(NamedTuple):
    """What changes with a file's content. The kernel alone sets `changed`, to the time of the last write or rename."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> "FileIdentity":
        """Of what was found at a path. Raises BadCheckpoint if it is no regular file."""
        if not stat.S_ISREG(status.st_mode):
            raise BadCheckpoint(path, "is not a regular file")
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @classmethod
    def at(cls, path: Path) -> "FileIdentity":
        """Of the file at a path. Raises BadCheckpoint if there is none, or no regular file."""
        try:
            return cls.of(path, os.lstat(path))
        except OSError as error:
            raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from error


class ChunkFile:
    """An array's file, open: as a context manager it is closed in the end.

    Attributes:
        identity: of the file that is open, whatever its path names later.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> None:
        """Opens the file, and has the kernel begin to read it; `shape` is `[layers, pages, 16, width]`.

        Raises:
            BadCheckpoint: no regular file, or not of the size of such an array.
        """
        self.path = path
        self._shape = shape
        self._dtype = dtype
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from error
        try:
            self.identity = FileIdentity.of(path, os.fstat(descriptor))
            size = int(np.prod(shape)) * dtype.itemsize
            if self.identity.size != size:
                raise BadCheckpoint(path, f"has {self.identity.size:,} bytes where the manifest states {size:,}")
            if sys.platform == "linux":
                os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
        except BaseException:
            os.close(descriptor)
            raise
        self._file = os.fdopen(descriptor, "rb", buffering=0)

    def __enter__(self) -> "ChunkFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, memory: Memory) -> np.ndarray[Any, np.dtype[Any]]:
        """The array, in memory of its size: its pages one after the other, and of each page its layers.

        Raises:
            BadCheckpoint: the file became shorter.
        """
        layers, pages, rank, width = self._shape
        array = memory.view(self._dtype).reshape(pages, layers, rank, width)
        parts = [array[page, layer] for layer in range(layers) for page in range(pages)] if pages > 1 else [array]
        if not read_exactly(self._file, 0, *parts):
            raise BadCheckpoint(self.path, "ends too early")
        return array.swapaxes(0, 1)


def allocate(sizes: Sequence[int]) -> list[Memory]:
    """Memory for several arrays, each at a multiple of `ALIGNMENT`.

    In one piece, for which numpy asks the kernel for huge pages: a fault for each 4 KiB takes as long as the copy.
    """
    places = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    memory = np.empty(places[-1] + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return [memory[begin + place :][:size] for place, size in zip(places[:-1], sizes, strict=True)]
