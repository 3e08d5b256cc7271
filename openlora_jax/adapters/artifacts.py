"""Artifacts by digest, in one directory. What lies under a digest is always whole.

DIRECTORY/<digest>/   made under a name with a leading dot, synced, renamed; never changed after, but for its seal
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from openlora_jax.adapters.artifact import Artifact, Tensor, artifact_digest, check_arrays, read_artifact, read_manifest
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.registry import DIGEST
from openlora_jax.adapters.seal import Seal
from openlora_jax.errors import BadCheckpoint
from openlora_jax.staging import staged_directory


class Artifacts:
    """A directory of artifacts. Any number of processes may read it; whoever changes it sees to it that he is alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, digest: str) -> Path:
        """Where the artifact of that digest is, if it is here. Raises BadCheckpoint if it is no digest."""
        if not DIGEST.fullmatch(digest):
            raise BadCheckpoint(self.path, f"{digest[:70]!r} is no digest")
        return self.path / digest

    def holds(self, digest: str) -> bool:
        """Whether it is here, damaged or not. Raises BadCheckpoint if it is no digest."""
        return self.folder(digest).is_dir()

    def manifest(self, digest: str) -> Manifest:
        """What the artifact holds. Raises BadCheckpoint."""
        return read_manifest(self.folder(digest))

    def read(self, digest: str) -> tuple[Manifest, dict[str, Tensor]]:
        """The whole artifact, in host memory, and in truth what its digest names: see `Seal`. Raises BadCheckpoint."""
        folder = self.folder(digest)
        artifact = read_artifact(folder)
        seal = Seal.read(folder)
        if seal is None or not seal.proves(digest, artifact):
            _check_digest(folder, digest, artifact)
            with suppress(OSError):  # a directory that cannot be written, or from which the artifact goes right now
                Seal.of(digest, artifact).write(folder)
        return artifact.manifest, artifact.tensors

    def damage(self, digest: str) -> BadCheckpoint | None:
        """What is wrong with an artifact, by its digest, computed anew; None if it is sound."""
        folder = self.folder(digest)
        try:
            _check_digest(folder, digest, read_artifact(folder))
        except BadCheckpoint as error:
            return error
        return None

    def add(self, digest: str, write: Callable[[Path], None]) -> None:
        """Makes an artifact that is not here appear, whole, sealed and on the disk.

        Args:
            digest: of the artifact.
            write: puts the files into an empty folder.

        Raises:
            BadCheckpoint: what was written is not what the digest names.
            OSError: the disk is full or not writable.
            Exception: whatever `write` raises.
        """
        with staged_directory(self.folder(digest)) as folder:
            write(folder)
            artifact = read_artifact(folder)
            _check_digest(folder, digest, artifact)
            Seal.of(digest, artifact).write(folder)

    def delete(self, digest: str) -> None:
        """Renames first; what cannot be removed then is swept later. One that is gone already is no error.

        Raises:
            OSError: it cannot be renamed.
        """
        old = self.path / f".{digest}.deleted"
        shutil.rmtree(old, ignore_errors=True)  # of a process that was killed before
        with suppress(FileNotFoundError):
            self.folder(digest).rename(old)
        shutil.rmtree(old, ignore_errors=True)

    def sweep(self) -> None:
        """Deletes what killed processes left behind: directories; a file such as `.DS_Store` is none of theirs."""
        for leftover in self.path.glob(".*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)


def _check_digest(folder: Path, digest: str, artifact: Artifact) -> None:
    check_arrays(folder, artifact.manifest)
    found = artifact_digest(artifact.manifest, artifact.tensors)
    if found != digest:
        raise BadCheckpoint(folder, f"its content has the digest {found}; convert it again")
