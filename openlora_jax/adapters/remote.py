"""A store that lies elsewhere: on a path, or behind `s3://`, `gs://`, `hf://`, whatever fsspec has a file system for.

Nothing is listed there. The names of all files that are asked for are made here, of a digest and of the manifest's
modules, and each is read up to the size that it must have. URLs may hold passwords, and the errors of file systems may
hold URLs: neither is shown.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from openlora_jax.adapters.artifact import array_files, parse_manifest
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.registry import DIGEST
from openlora_jax.errors import BadCheckpoint, InvalidConfig
from openlora_jax.untrusted import JSON_LIMIT

REGISTRY = "registry.jsonl"
REGISTRY_LIMIT = 256 << 20
"""Bytes of a registry, at most: a million names take 180 MB."""

VERSIONS = frozenset(
    {
        "ETag",
        "etag",
        "Last-Modified",
        "LastModified",
        "last_modified",
        "mtime",
        "updated",
        "generation",
        "ino",
        "blob_id",
    }
)
"""What file systems call that which changes with a file: its entity tag, time or number."""

Answer = TypeVar("Answer")


class Remote:
    """Reads a remote store. Any thread; every method but `__init__` waits for the other side.

    Attributes:
        place: where it is, without what may be secret in its URL.
    """

    def __init__(self, url: str) -> None:
        """Finds the file system; asks it nothing.

        Raises:
            InvalidConfig: fsspec, or the package of this kind of URL, is not installed, or there is no such kind.
        """
        self.place = _without_secrets(url)
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise InvalidConfig("remote", "needs fsspec; install openlora-jax[remote]") from None
        try:
            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            reason = (
                "needs a package that is not installed" if isinstance(error, ImportError) else "is no URL of a store"
            )
            raise InvalidConfig("remote", f"{self.place} {reason}; see fsspec's list of file systems") from None

    def registry_version(self) -> Mapping[str, str] | None:
        """What changes with the registry, as the file system says now; None if it says nothing of the kind.

        Raises:
            BadCheckpoint: there is no registry.
            OSError: the other side cannot be reached.
        """
        self._asked(self._files.invalidate_cache)
        facts = self._asked(lambda: self._files.info(f"{self._root}/{REGISTRY}"))
        version = {key: str(facts[key]) for key in sorted(VERSIONS & facts.keys()) if facts[key] is not None}
        return {**version, "size": str(facts.get("size"))} if version else None

    def registry(self) -> bytes:
        """The registry, as it is now.

        Raises:
            BadCheckpoint: it is not there, or too large.
            OSError: the other side cannot be reached.
        """
        return self._read(REGISTRY, REGISTRY_LIMIT)

    def manifest(self, digest: str) -> tuple[Manifest, bytes]:
        """The manifest of an artifact, and the text that it is from; neither is proved to be of that digest.

        Raises:
            BadCheckpoint: the digest is none, or the manifest is not there, or damaged.
            OSError: the other side cannot be reached.
        """
        if not DIGEST.fullmatch(digest):
            raise BadCheckpoint(self.place, f"{digest[:70]!r} is no digest")
        name = f"artifacts/{digest}/manifest.json"
        text = self._read(name, JSON_LIMIT)
        return parse_manifest(Path(self.place) / name, text), text

    def fetch(self, digest: str, manifest: Manifest, text: bytes, folder: Path) -> None:
        """Writes an artifact's files into an empty folder, each of the right size; what they hold is proved by nobody.

        Raises:
            BadCheckpoint: a file is missing, or of another size than the manifest states.
            OSError: the other side cannot be reached, or the disk is full.
        """
        for chunk in array_files(manifest):
            content = self._read(f"artifacts/{digest}/{chunk.name}", chunk.size)
            if len(content) != chunk.size:
                raise BadCheckpoint(f"{self.place}/artifacts/{digest}/{chunk.name}", f"is not of {chunk.size:,} bytes")
            (folder / chunk.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / chunk.name).write_bytes(content)
            (folder / chunk.name).with_name(".zarray").write_text(chunk.zarray)
        (folder / "manifest.json").write_bytes(text)

    def _read(self, name: str, limit: int) -> bytes:
        content = self._asked(lambda: self._read_beyond(name, limit))
        if len(content) > limit:
            raise BadCheckpoint(f"{self.place}/{name}", f"is larger than {limit:,} bytes")
        return content

    def _read_beyond(self, name: str, limit: int) -> bytes:
        """A file as a stream, of which never more is taken than one byte beyond the limit; a range may be ignored."""
        parts, left = list[bytes](), limit + 1
        with self._files.open(f"{self._root}/{name}", "rb") as file:
            while left and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
        return b"".join(parts)

    def _asked(self, ask: Callable[[], Answer]) -> Answer:
        """Asks the file system; its own errors say too much."""
        try:
            return ask()
        except MemoryError:
            raise
        except FileNotFoundError:
            raise BadCheckpoint(self.place, "holds no such store, or not all of this adapter") from None
        except Exception as error:  # whatever the package of this file system raises
            reason = "refuses to be read" if isinstance(error, PermissionError) else f"failed: {type(error).__name__}"
            raise ConnectionError(f"{self.place} {reason}") from None


def _without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url)[0])
