"""The names of a remote store, as they were a moment ago: nobody who asks for a name waits for the other side."""

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from openlora_jax.adapters.registry import Names, Registry
from openlora_jax.adapters.remote import Remote
from openlora_jax.errors import BadCheckpoint, CannotInstall, InvalidConfig

REFRESH = 5.0
"""Seconds between two looks at the remote registry."""

log = logging.getLogger(__name__)


class RemoteRegistry:
    """A copy on this disk that a thread of its own keeps up to date; it stays as it is while the other side is away."""

    def __init__(self, remote: Remote, path: Path) -> None:
        """Reads the remote registry, and follows it.

        Raises:
            InvalidConfig: there is none, or a damaged one; while the other side is away, its copy here is.
            CannotInstall: this disk is full or not writable.
        """
        self._remote = remote
        self._path = path
        self._names = Names()
        self._version: Mapping[str, str] | None = None
        self._digest = b""
        self._away = False
        self._closing = threading.Event()
        try:
            self.refresh()
            if self._away:
                self._names = Registry(path).names()
        except BadCheckpoint as error:
            raise InvalidConfig("remote", str(error)) from error
        except OSError as error:
            raise CannotInstall(path, error.strerror or str(error)) from error
        threading.Thread(target=self._follow, name="remote-registry", daemon=True).start()

    def names(self) -> Names:
        """Every name, at once; the same object until one changes."""
        return self._names

    def refresh(self) -> None:
        """Looks now; that the other side is away is logged when it begins and when it ends.

        Raises:
            BadCheckpoint: there is no remote registry, or a damaged one.
            OSError: this disk is full or not writable.
        """
        try:
            version = self._remote.registry_version()
            same = version is not None and version == self._version
            text = None if same else self._remote.registry()
        except OSError as error:
            if not self._away:
                log.warning("adapters of the remote store are those that were known before: %s", error)
            self._away = True
            return
        if self._away:
            log.info("%s is there again", self._remote.place)
        self._away = False
        if text is None:
            return
        digest = hashlib.sha256(text).digest()
        if digest != self._digest:
            self._replace(text)
        self._digest, self._version = digest, version

    def close(self) -> None:
        self._closing.set()

    def _follow(self) -> None:
        damage = ""
        while not self._closing.wait(REFRESH):
            try:
                self.refresh()
                damage = ""
            except (BadCheckpoint, OSError) as error:  # OSError: this disk
                if str(error) != damage:
                    log.warning("the remote registry stays as it was: %s", error)
                damage = str(error)

    def _replace(self, text: bytes) -> None:
        """The new one is read whole before it takes the old one's place."""
        candidate = self._path.with_name(f".{self._path.name}")
        candidate.write_bytes(text)
        names = Registry(candidate).names()
        os.replace(candidate, self._path)
        self._names = names
