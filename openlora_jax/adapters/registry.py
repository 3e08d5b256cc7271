"""Which name stands for which artifact, or for which mix: an append-only file that outlives every process.

Each line is a JSON object, {"name", "digest", "time"}; the last line of a name counts, a null digest removes it. A null
digest beside "mix", an object of weights by name, makes it a mix, which versions without mixes take for a removed name.
Readers take no lock: a line without its newline is still being written, or its writer was killed, and does not count.
Any other line that is no registration stops the store: it may have replaced or removed a name, which would go on to
stand for what it must not.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from openlora_jax.adapters.mixes import Member, NamedMix, check_mix, mix_text
from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnknownAdapter

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")

Change = str | Mapping[str, float] | None
"""What a name stands for from now on: a digest, a mix, or nothing."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a name stands for.

    Attributes:
        digest: of the artifact.
        time: when it was registered, ISO 8601 in UTC.
    """

    digest: str
    time: str


@dataclass(frozen=True, slots=True)
class Names:
    """All that is registered, at one moment. A name is in one of the two at most; nobody changes them."""

    adapters: Mapping[str, Registration] = field(default_factory=dict)
    mixes: Mapping[str, NamedMix] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """Of the adapter of that name. Raises UnknownAdapter, or InvalidRequest if it is a mix."""
        if name in self.mixes:
            raise InvalidRequest(
                "adapter", f"{name!r} is the mix {mix_text(self.mixes[name].weights)}; name one adapter"
            )
        if name not in self.adapters:
            raise UnknownAdapter(name)
        return self.adapters[name].digest

    def members(self, name: str) -> tuple[Member, ...]:
        """What a request for that name asks for: the adapter with weight 1, or the members of the mix.

        Raises:
            UnknownAdapter: nothing has that name, or that of a member.
        """
        weights = self.mixes[name].weights if name in self.mixes else {name: 1.0}
        return tuple(Member(member, self.digest(member), weight) for member, weight in weights.items())

    def before(self, others: "Names") -> "Names":
        """These, and the others' that have no name in common with them."""
        return Names(
            {**{name: each for name, each in others.adapters.items() if name not in self.mixes}, **self.adapters},
            {**{name: each for name, each in others.mixes.items() if name not in self.adapters}, **self.mixes},
        )


def check_name(name: str) -> None:
    """Raises InvalidRequest if `name` can be no adapter's name."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            "name", f"{name[:140]!r} must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
        )


class Registry:
    """Names and what they stand for, as of the file's last complete line. Thread-safe.

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
            InvalidRequest: it is a mix.
            BadCheckpoint: the file is damaged.
        """
        return self.names().digest(name)

    def registrations(self) -> Mapping[str, Registration]:
        """Every adapter's name; the caller must not change it."""
        return self.names().adapters

    def names(self) -> Names:
        """Every name; the same object until one changes."""
        with self._mutex:
            self._refresh()
            return self._current

    def retired(self, age: timedelta) -> set[str]:
        """The digests that once had a name, and have had none for that long."""
        named = {registration.digest for registration in self.registrations().values()}
        latest = _time(datetime.now(UTC) - age)
        return {digest for digest, time in self._seen.items() if digest not in named and time <= latest}

    def append(self, changes: Mapping[str, Change]) -> None:
        """Registers names, or removes those that stand for nothing now, durably, all in one write."""
        if not changes:
            return
        time = _time(datetime.now(UTC))
        lines = [json.dumps(_entry(name, change, time)) + "\n" for name, change in changes.items()]
        with open(self._path, "ab") as file:
            self.names()
            file.truncate(self._offset)  # a line that a killed writer left unfinished
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _forget(self) -> None:
        self._version: tuple[int, int, int] | None = None
        self._offset = self._lines = 0
        self._current = Names()
        self._seen = dict[str, str]()  # digest -> time of the last line that gave it a name, or took one from it

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
        adapters, mixes = dict(self._current.adapters), dict(self._current.mixes)
        for number, line in enumerate(lines, self._lines + 1):
            try:
                name, now, time = _parse(line)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError, InvalidRequest) as error:
                way_out = "take it out or restore the file, then look at `openlora adapters list`"
                raise BadCheckpoint(self._path, f"line {number} is no registration; {way_out}") from error
            if before := adapters.pop(name, None):
                self._seen[before.digest] = time
            mixes.pop(name, None)
            if isinstance(now, Registration):
                adapters[name] = now
                self._seen[now.digest] = time
            elif now is not None:
                mixes[name] = now
        self._lines += len(lines)
        self._current = Names(adapters, mixes)


def _entry(name: str, change: Change, time: str) -> dict[str, Any]:
    if isinstance(change, Mapping):
        return {"name": name, "digest": None, "mix": dict(change), "time": time}
    return {"name": name, "digest": change, "time": time}


def _time(moment: datetime) -> str:
    """As lines have it; the earlier is the smaller."""
    return moment.isoformat(timespec="seconds")


def _parse(line: bytes) -> tuple[str, Registration | NamedMix | None, str]:
    """A name, what it stands for from then on, and when that was."""
    entry = json.loads(line)
    name, digest, time = entry["name"], entry["digest"], entry["time"]
    if not NAME.fullmatch(name) or not isinstance(time, str):
        raise ValueError(line)
    if digest is None:
        return name, NamedMix(_weights(entry["mix"]), time) if "mix" in entry else None, time
    if not DIGEST.fullmatch(digest):
        raise ValueError(line)
    return name, Registration(digest, time), time


def _weights(mix: Any) -> dict[str, float]:
    if not isinstance(mix, dict) or not mix or not all(map(NAME.fullmatch, mix)):
        raise ValueError(mix)
    weights = {name: float(weight) for name, weight in mix.items()}
    check_mix(weights.items())
    return weights
