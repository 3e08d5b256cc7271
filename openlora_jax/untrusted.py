"""Reading files that nobody vouches for: regular files only, limits before allocation, JSON without its loose ends."""

import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from openlora_jax.errors import BadCheckpoint

JSON_LIMIT = 1 << 20
"""Bytes of a configuration file, at most."""

MOST_PARTS = 1024
"""That one call of the kernel fills."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file, unbuffered, without ever blocking on a pipe or a device.

    A symbolic link may point within its own folder, or into the `blobs` of the Hugging Face cache that the folder is a
    snapshot of; anywhere else it is refused, so that a folder from a stranger cannot name other files of this machine.

    Raises:
        BadCheckpoint: missing, unreadable, not a regular file, or a link that leads out of the folder.
    """
    folder = Path(os.path.realpath(path.parent))
    target = Path(os.path.realpath(path))
    roots = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(target.is_relative_to(root) for root in roots):
        raise BadCheckpoint(path, f"is a symbolic link out of its folder, to {target}; put the file itself there")
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BadCheckpoint(path, f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadCheckpoint(path, "is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_limited(path: Path, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes.

    Raises:
        BadCheckpoint: see `open_regular`; or the file is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BadCheckpoint(path, f"has {size:,} bytes, more than the limit of {limit:,}")
        return os.pread(file.fileno(), limit, 0)


def read_exactly(file: BinaryIO, offset: int, *arrays: NDArray[Any]) -> bool:
    """Fills contiguous arrays, one after the other, from the file at `offset`; False where the file ends too early."""
    parts = deque(memoryview(array.reshape(-1).view(np.uint8)) for array in arrays if array.size)
    while parts:
        count = os.preadv(file.fileno(), list(islice(parts, MOST_PARTS)), offset)
        if count == 0:
            return False
        offset += count
        while parts and count >= len(parts[0]):
            count -= len(parts.popleft())
        if count:
            parts[0] = parts[0][count:]
    return True


def read_json_object(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a small regular file; see `parse_json_object`."""
    return parse_json_object(path, read_limited(path, limit))


def parse_json_object(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object with every key once and every number finite.

    Raises:
        BadCheckpoint: no UTF-8, no JSON, no object, a repeated key, NaN or an infinity, or nested too deep.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise BadCheckpoint(path, f"the key {next(_repeated(pairs))!r} occurs more than once")
        return fields

    def finite(literal: str) -> float:
        value = float(literal)
        if value in (float("inf"), float("-inf")):
            refuse_constant(literal)
        return value

    def refuse_constant(literal: str) -> NoReturn:
        raise BadCheckpoint(path, f"{literal[:40]} is not a finite number")

    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_float=finite, parse_constant=refuse_constant
        )
    except RecursionError as error:
        raise BadCheckpoint(path, "is nested too deep") from error
    except ValueError as error:
        raise BadCheckpoint(path, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(path, "must hold a JSON object")
    return value


def _repeated(pairs: list[tuple[str, Any]]) -> Iterator[str]:
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            yield key
        seen.add(key)
