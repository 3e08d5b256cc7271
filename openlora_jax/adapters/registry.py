"""Which name stands for which artifact: an append-only file that outlives every process.

Each line is a JSON object, {"name", "digest", "time"}; the last line of a name counts, a null digest removes it.
Readers take no lock: a line without its newline is still being written, or its writer was killed, and does not count.
Any other line that is no registration stops the store: it may have replaced or removed a name, which would go on to
stand for what it must not.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnknownAdapter

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Registration:
    """What a name stands for.

    Attributes:
        digest: of the artifact.
        time: when it was registered, ISO 8601 in UTC.
    """

    digest: str
    time: str


def check_name(name: str) -> None:
    """Raises InvalidRequest if `name` can be no adapter's name."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            "name", f"{name[:140]!r} must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
        )


class Registry:
    """Names and digests, as of the file's last complete line. Thread-safe.

    Writing is for the holder of the store's lock alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._forget()

    def resolve(self, name: str) -> str:
        """The digest that `name` stands for now.

        Raises:
            UnknownAdapter: no such name.
            BadCheckpoint: the file is damaged.
        """
        registration = self.registrations().get(name)
        if registration is None:
            raise UnknownAdapter(name)
        return registration.digest

    def registrations(self) -> Mapping[str, Registration]:
        """Every registered name; the caller must not change it."""
        with self._mutex:
            self._refresh()
            return self._current

    def retired(self) -> set[str]:
        """The digests that once had a name and have none now."""
        current = self.registrations()
        return self._seen - {registration.digest for registration in current.values()}

    def append(self, changes: Mapping[str, str | None]) -> None:
        """Registers names (or removes those whose digest is None), durably, all in one write."""
        if not changes:
            return
        time = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({"name": name, "digest": digest, "time": time}) + "\n" for name, digest in changes.items()]
        with open(self._path, "ab") as file:
            self.registrations()
            file.truncate(self._offset)  # a line that a killed writer left unfinished
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _forget(self) -> None:
        self._version: tuple[int, int, int] | None = None
        self._offset = self._lines = 0
        self._current: dict[str, Registration] = {}
        self._seen = set[str]()

    def _refresh(self) -> None:
        """Reads what was appended since the last time; the whole file if it is another one."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            if self._version is not None:
                self._forget()
            return
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if version == self._version:
            return
        if self._version and (status.st_ino != self._version[0] or status.st_size < self._offset):
            self._forget()
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        if complete:
            self._apply(complete.split(b"\n"))
            self._offset += len(complete) + 1
        self._version = version

    def _apply(self, lines: list[bytes]) -> None:
        current = dict(self._current)
        for number, line in enumerate(lines, self._lines + 1):
            try:
                name, registration = _parse(line)
            except (ValueError, TypeError, KeyError) as error:
                way_out = (
                    "take it out or put a copy of the file back, and see what names mean in `openlora adapters list`"
                )
                raise BadCheckpoint(self._path, f"line {number} is no registration; {way_out}") from error
            if registration is None:
                current.pop(name, None)
            else:
                current[name] = registration
                self._seen.add(registration.digest)
        self._lines += len(lines)
        self._current = current


def _parse(line: bytes) -> tuple[str, Registration | None]:
    entry = json.loads(line)
    name, digest, time = entry["name"], entry["digest"], entry["time"]
    if not NAME.fullmatch(name) or not isinstance(time, str):
        raise ValueError(line)
    if digest is None:
        return name, None
    if not DIGEST.fullmatch(digest):
        raise ValueError(line)
    return name, Registration(digest, time)
