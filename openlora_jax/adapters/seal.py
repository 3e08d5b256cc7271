"""The seal of an artifact: a note beside its files that these very files were digested, so that later reads need not.

SHA-256 is the slowest part of a load: 14 ms for 20 MB, more than reading them. It is computed when an artifact is
installed, or read for the first time here. What is noted then is what the kernel said of each file, and a checksum of
all that was read. A later read trusts the seal if the kernel says the same, and the numbers have the same checksum:

* Whoever writes to a file, or puts another in its place, even with the old times, changes what the kernel says: nobody
  but the kernel sets the time of the last change. So a seal means nothing for a copy, on another machine or this one.
* What changes below the file system, on the disk or on its way from there, changes the checksum, be it another bit or
  another order: every word is added to one of `SUMS` sums in turn, and the CRC-32 of these sums is noted.

Whatever the seal does not prove is digested again, and sealed anew. That is against accidents, not against people: who
can write into the folder can write a seal there too. `openlora adapters verify` trusts none, and digests.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from openlora_jax.adapters.artifact import Artifact
from openlora_jax.adapters.chunk_file import FileIdentity
from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import read_json_object

NAME = "seal.json"
"""In the artifact's folder. It is never in the way of anything: it may be lost, cut off or out of date."""

SUMS = 1021
"""A prime: what a disk swaps or displaces, its blocks being powers of two, comes to another sum."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What was digested.

    Attributes:
        digest: that was found.
        checksum: of the manifest's text and the tensors, in the manifest's order, each as it lies in memory.
        files: what the kernel said of them before they were read.
    """

    digest: str
    checksum: int
    files: Mapping[str, FileIdentity]

    @classmethod
    def of(cls, digest: str, artifact: Artifact) -> "Seal":
        """The seal of an artifact that was digested as it was read."""
        return cls(digest, _checksum(artifact), artifact.files)

    @classmethod
    def read(cls, folder: Path) -> "Seal | None":
        """The seal in an artifact's folder; None if there is none, or none that can be read."""
        try:
            return _SEALS.validate_python(read_json_object(folder / NAME))
        except (BadCheckpoint, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Puts the seal into an artifact's folder, in the place of whatever has its name. Raises OSError."""
        new = folder / f".{NAME}.{os.urandom(8).hex()}"
        try:
            with open(new, "x") as file:  # never through a link
                json.dump(asdict(self), file)
            os.replace(new, folder / NAME)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def proves(self, digest: str, artifact: Artifact) -> bool:
        """Whether what was read is what was digested, with this result."""
        return self.digest == digest and self.files == artifact.files and self.checksum == _checksum(artifact)


_SEALS = TypeAdapter(Seal)


def _checksum(artifact: Artifact) -> int:
    """One CRC-32 of all sums: five times as fast as one of the words, most of it without the interpreter's lock."""
    checksum = zlib.crc32(artifact.text)
    for tensor in artifact.tensors.values():
        words = tensor.swapaxes(0, 1).reshape(-1).view(np.uint64)
        whole = words.size - words.size % SUMS
        sums = np.add.reduce(words[:whole].reshape(-1, SUMS), axis=0)
        sums[: words.size - whole] += words[whole:]
        checksum = zlib.crc32(sums, checksum)
    return checksum
