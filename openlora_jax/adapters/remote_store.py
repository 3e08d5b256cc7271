"""A store whose adapters may also lie elsewhere: those that are asked for are fetched, verified and kept for a while.

STORE/fetched/registry.jsonl        the remote names, as they were last seen
STORE/fetched/artifacts/<digest>/   see `DiskCache`
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping

from openlora_jax.adapters.artifact import Tensor
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.disk_cache import DiskCache
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.mixes import Member
from openlora_jax.adapters.registry import Names, Registration
from openlora_jax.adapters.remote import Remote
from openlora_jax.adapters.remote_registry import RemoteRegistry
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.errors import BadCheckpoint

MAX_MANIFESTS = 16
"""Of adapters that are not here, kept in memory with their texts, of a MiB at most, for the reads that follow."""


class RemoteStore:
    """A local store, and a remote one behind it. Any thread.

    What is registered or stored here is used as it is here; everything else is fetched by `read`, which counts as a
    load from the source `remote`, and then read from this disk. Whoever loads sees to it that an adapter is read once
    at a time; where one is read again, as the first time took too long, both fetch it and one counts.
    """

    def __init__(self, local: AdapterStore, url: str, budget: int, counters: Counters) -> None:
        """Reads the remote registry.

        Args:
            local: where everything that is fetched is kept.
            url: of a directory as `openlora convert adapter` makes one.
            budget: of what is fetched, in bytes.
            counters: of all tiers.

        Raises:
            InvalidConfig: no such store can be read there, or another process uses this local one in the same way.
            CannotInstall: the local store cannot be written.
        """
        self.local = local
        self._remote = Remote(url)
        self._counters = counters
        self._fetched = DiskCache(local.path / "fetched", budget, counters)
        try:
            self._registry = RemoteRegistry(self._remote, local.path / "fetched" / "registry.jsonl")
        except BaseException:
            self._fetched.close()
            raise
        self._merged = (Names(), Names(), Names())
        self._lock = threading.Lock()
        self._arriving: OrderedDict[str, tuple[Manifest, bytes]] = OrderedDict()

    def resolve(self, name: str) -> str:
        """The digest that `name` stands for, here or else there. Raises UnknownAdapter, InvalidRequest for a mix."""
        return self.names().digest(name)

    def members(self, name: str) -> tuple[Member, ...]:
        """What a request for `name` asks for, here or else there. Raises UnknownAdapter."""
        return self.names().members(name)

    def registrations(self) -> Mapping[str, Registration]:
        """Every adapter that is registered here or there; the caller must not change it."""
        return self.names().adapters

    def names(self) -> Names:
        """Every name, here or else there. The members of a mix are looked up like any name, here first."""
        local, remote = self.local.names(), self._registry.names()
        merged = self._merged
        if merged[0] is not local or merged[1] is not remote:
            merged = self._merged = (local, remote, local.before(remote))
        return merged[2]

    def is_remote(self, digest: str) -> bool:
        """Whether its next read fetches it. Raises BadCheckpoint if it is no digest."""
        return not self.local.holds(digest) and not self._fetched.holds(digest)

    def manifest(self, digest: str) -> Manifest:
        """What the artifact holds; asks the other side only for what is not here, or damaged, and then every time.

        Raises:
            BadCheckpoint: the artifact is damaged, or nowhere.
            OSError: the other side cannot be reached.
        """
        if self.local.holds(digest):
            return self.local.manifest(digest)
        with self._fetched.using(digest):
            if self._fetched.holds(digest):
                try:
                    return self._fetched.manifest(digest)
                except BadCheckpoint:  # it was whole when it came
                    self._fetched.drop(digest)
        found = self._remote.manifest(digest)
        with self._lock:
            self._arriving[digest] = found
            if len(self._arriving) > MAX_MANIFESTS:
                self._arriving.popitem(last=False)
        return found[0]

    def read(self, digest: str) -> tuple[Manifest, dict[str, Tensor]]:
        """The whole artifact, in host memory, and in truth what its digest names.

        Raises:
            BadCheckpoint: what is here, or there, is damaged.
            OSError: the other side cannot be reached, or this disk is full.
            ValueError: it is larger than what may be fetched.
        """
        if self.local.holds(digest):
            return self.local.read(digest)
        with self._fetched.using(digest):
            found = self._fetched.holds(digest)
            self._counters.asked_disk(found)
            if found:
                try:
                    return self._fetched.read(digest)
                except BadCheckpoint:  # it was whole when it came
                    self._fetched.drop(digest)
            self._fetch(digest)
            return self._fetched.read(digest)

    def close(self) -> None:
        """Follows the remote registry no longer, and lets another process fetch."""
        self._registry.close()
        self._fetched.close()

    def _fetch(self, digest: str) -> None:
        with self._counters.load(digest, "remote") as load:
            with self._lock:
                arriving = self._arriving.pop(digest, None)
            manifest, text = arriving or self._remote.manifest(digest)
            self._fetched.add(digest, manifest, lambda folder: self._remote.fetch(digest, manifest, text, folder))
            load.lap("fetch")
            load.nbytes = manifest.nbytes
