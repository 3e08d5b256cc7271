"""Directories that appear whole or not at all, whatever happens while they are made."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_directory(destination: Path) -> Iterator[Path]:
    """Yields an empty directory beside `destination`; when the block ends well it is made durable and takes that name.

    An error in the block removes it. A process killed in the block leaves a `.NAME.partial-*` beside the destination,
    which nothing reads and which may be deleted.

    Raises:
        OSError: the destination exists and is not an empty directory, or the disk is full or not writable.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
    try:
        yield stage
        stage.chmod(0o755)
        _make_durable(stage)
        stage.rename(destination)
        _sync(destination.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


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
