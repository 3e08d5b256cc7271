"""Directories that appear whole or not at all, whatever happens while they are made."""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openlora_jax.errors import CannotInstall


@contextmanager
def staged_directory(destination: Path) -> Iterator[Path]:
    """Yields an empty directory beside `destination`; when the block ends well it is made durable and takes that name.

    An error in the block removes it. A process killed in the block leaves a `.NAME.partial-*` beside the destination,
    which nothing reads, and which the next one of the same destination removes.

    Raises:
        OSError: the destination exists and is not an empty directory, or the disk is full or not writable.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _new_stage(destination) as stage:
        try:
            yield stage
            stage.chmod(0o755)
            _make_durable(stage)
            stage.rename(destination)
            _sync(destination.parent)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


@contextmanager
def new_directory(destination: Path, need: int = 0) -> Iterator[Path]:
    """A `staged_directory` for a caller's own destination, looked at before anything is made.

    Args:
        destination: what does not exist yet, or is an empty directory.
        need: bytes that must be free.

    Raises:
        CannotInstall: the destination is in use, or the disk is full or not writable, now or while the block runs.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CannotInstall(destination, "it exists and is not an empty directory; choose another or remove it")
    existing = next(folder for folder in destination.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise CannotInstall(destination, f"it needs {need:,} bytes, {existing} has {free:,} free")
    try:
        with staged_directory(destination) as stage:
            yield stage
    except OSError as error:
        raise CannotInstall(destination, os.strerror(error.errno) if error.errno else str(error)) from error


@contextmanager
def _new_stage(destination: Path) -> Iterator[Path]:
    """A directory that is locked while its process lives, which tells it from a leftover.

    One process at a time sweeps and makes one, so that none is swept before it is locked. Where the file system has no
    locks, nothing is swept.
    """
    prefix = f".{destination.name}.partial-"
    parent = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(parent, fcntl.LOCK_EX)
            for leftover in destination.parent.glob(f"{glob.escape(prefix)}*"):
                _sweep(leftover)
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
        lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(parent)
    try:
        yield stage
    finally:
        os.close(lock)


def _sweep(leftover: Path) -> None:
    """Removes a stage whose process is dead."""
    with suppress(OSError):
        lock = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(lock)


def _make_durable(directory: Path) -> None:
    for folder, _, files in os.walk(directory, topdown=False):
        for file in files:
            _sync(Path(folder) / file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
