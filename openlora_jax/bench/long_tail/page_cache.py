"""The kernel's page cache: an adapter that nobody has asked for in an hour is not in it."""

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.errors import InvalidConfig

PASSES, PAUSE = 3, 0.1
"""A file that is still being written to the disk, its journal included, leaves at a later pass."""


def drop(store: AdapterStore, digests: Iterable[str]) -> int:
    """Takes everything that the store keeps of these adapters out of the page cache; folders and inodes stay.

    Returns:
        How many files stayed nevertheless.

    Raises:
        InvalidConfig: this system cannot do so.
    """
    if not hasattr(os, "posix_fadvise"):
        raise InvalidConfig("bench", "this system cannot take files out of its page cache; Linux can")
    left = [file for digest in digests for file in files(store, digest)]
    for number in range(PASSES):
        time.sleep(PAUSE if number and left else 0.0)
        for file in left:
            _drop(file)
        left = [file for file in left if is_cached(file)]
    return len(left)


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not on the disk yet stays in memory
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def files(store: AdapterStore, digest: str) -> Iterator[Path]:
    """Every file that is under, or named by, a digest."""
    for place in store.path.glob(f"*/{digest}*"):
        yield from [place] if place.is_file() else (file for file in place.rglob("*") if file.is_file())


def is_cached(file: Path) -> bool:
    """Whether any page of a file is in the page cache, as mincore(2) says: to try and read it would bring it there."""
    size = file.stat().st_size
    if not size:
        return False
    states = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        first = ctypes.c_char.from_buffer(view)
        address = ctypes.c_void_p(ctypes.addressof(first))
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(size), states)
        del first  # else the view could not be closed
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    return any(state & 1 for state in states)
