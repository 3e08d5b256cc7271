"""The kernel's page cache: an adapter that nobody has asked for in an hour is not in it."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.errors import InvalidConfig


def drop(store: AdapterStore, digests: Iterable[str]) -> None:
    """Takes everything that the store keeps of these adapters out of the page cache; folders and inodes stay.

    Raises:
        InvalidConfig: this system cannot do so.
    """
    if not hasattr(os, "posix_fadvise"):
        raise InvalidConfig("bench", "this system cannot take files out of its page cache; Linux can")
    for digest in digests:
        for file in files(store, digest):
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
    """Whether the start of a file is in the page cache: whether it can be read without waiting for the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
