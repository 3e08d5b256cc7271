"""Artifacts that were fetched from elsewhere, bounded in bytes: the least recently used leave, never one in use."""

import fcntl
import os
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openlora_jax.adapters.artifact import Tensor
from openlora_jax.adapters.artifacts import Artifacts
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.errors import BadCheckpoint, CannotInstall, InvalidConfig

FILE_BYTES = 8192
"""That an array takes on a disk beyond its numbers: the rest of its last block, and what zarr says of it."""


class DiskCache:
    """A directory for one process at a time. Any thread; the lock is never held while something is read or fetched.

    The following condition holds: what is here, and what is on its way, takes at most `budget` bytes.

    Attributes:
        budget: in bytes.
        nbytes: of what is here or on its way.
    """

    def __init__(self, path: Path, budget: int, counters: Counters) -> None:
        """Takes the directory, with what an earlier process fetched.

        Raises:
            InvalidConfig: another process has it.
            CannotInstall: it cannot be made, or not be cleaned of what a killed process left behind.
        """
        self._artifacts = Artifacts(path / "artifacts")
        self._counters = counters
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._used: Counter[str] = Counter()
        self.budget = budget
        self.nbytes = 0
        self._directory: int | None = None
        try:
            self._artifacts.path.mkdir(parents=True, exist_ok=True)
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise CannotInstall(path, error.strerror or str(error)) from error
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise InvalidConfig("remote", f"another process fetches into {path}; give each its own store") from None
        try:
            self._artifacts.sweep()
            self._find()
        except OSError as error:
            self.close()
            raise CannotInstall(path, error.strerror or str(error)) from error

    def close(self) -> None:
        """Lets another process have the directory; what is here stays. Again does nothing."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def holds(self, digest: str) -> bool:
        with self._lock:
            return digest in self._sizes

    def manifest(self, digest: str) -> Manifest:
        """Raises BadCheckpoint."""
        return self._artifacts.manifest(digest)

    def read(self, digest: str) -> tuple[Manifest, dict[str, Tensor]]:
        """The whole artifact, as its digest says; now the most recently used. Raises BadCheckpoint."""
        found = self._artifacts.read(digest)
        with suppress(OSError):  # it may leave right now
            os.utime(self._artifacts.folder(digest))  # for the order of the next start
        with self._lock:
            if digest in self._sizes:
                self._sizes.move_to_end(digest)
        return found

    @contextmanager
    def using(self, digest: str) -> Iterator[None]:
        """Keeps an artifact, here now or later, while the block runs."""
        with self._lock:
            self._used[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._used[digest] -= 1
                if not self._used[digest]:
                    del self._used[digest]

    def add(self, digest: str, manifest: Manifest, write: Callable[[Path], None]) -> None:
        """Takes in an artifact that is not here, and drops others for it. Where two do so at once, one counts.

        Raises:
            ValueError: it is larger than the budget.
            BadCheckpoint: what was written is not what the digest names.
            OSError: no room on the disk, or everything here is in use.
            Exception: whatever `write` raises.
        """
        size = _footprint(manifest)
        if size > self.budget:
            raise ValueError(f"it takes {size:,} bytes of disk, and disk_cache_bytes is {self.budget:,}")
        self._reserve(size)
        try:
            free = shutil.disk_usage(self._artifacts.path).free
            if free < size:
                raise OSError(f"it takes {size:,} bytes of disk, and {free:,} are free")
            self._artifacts.add(digest, write)
        except BaseException as error:
            with self._lock:
                self.nbytes -= size
            if isinstance(error, OSError) and self._artifacts.holds(digest):
                return  # the other one's, who may not have noted it yet
            raise
        with self._lock:
            self._sizes[digest] = size

    def drop(self, digest: str) -> None:
        """Deletes an artifact that turned out to be damaged. Raises OSError."""
        with self._lock:
            if digest in self._sizes:
                self._remove(digest)
                self._counters.evicted("disk", "failure", digest)

    def _find(self) -> None:
        """Learns what is here, the least recently used first."""
        found = sorted((entry.stat().st_mtime_ns, entry.name) for entry in os.scandir(self._artifacts.path))
        for _, digest in found:
            try:
                self._sizes[digest] = _footprint(self.manifest(digest))
            except BadCheckpoint:
                shutil.rmtree(self._artifacts.path / digest, ignore_errors=True)
        self.nbytes = sum(self._sizes.values())
        self._reserve(0)

    def _reserve(self, size: int) -> None:
        with self._lock:
            for digest in [digest for digest in self._sizes if not self._used[digest]]:
                if self.nbytes + size <= self.budget:
                    break
                self._remove(digest)
                self._counters.evicted("disk", "room", digest)
            if self.nbytes + size > self.budget:
                raise OSError("the disk cache is full of adapters that are being loaded; raise disk_cache_bytes")
            self.nbytes += size

    def _remove(self, digest: str) -> None:
        self.nbytes -= self._sizes.pop(digest)  # first: what cannot be deleted now is not tried for ever
        self._artifacts.delete(digest)


def _footprint(manifest: Manifest) -> int:
    """Bytes that an artifact takes on a disk."""
    return manifest.nbytes + FILE_BYTES * (1 + len(manifest.arrays))
