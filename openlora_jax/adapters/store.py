"""The store: artifacts by digest, and the registry of their names. Every change is whole or not there at all.

STORE/artifacts/<digest>/   see `Artifacts`
STORE/registry.jsonl        adapters and mixes; appended to and synced, once the artifact is in place
STORE/lock                  held by whoever changes the store; readers never take it
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from openlora_jax.adapters.artifact import Tensor, Tensors, artifact_digest, write_artifact
from openlora_jax.adapters.artifacts import Artifacts
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.mixes import Member, check_mix, mix_text
from openlora_jax.adapters.registry import Names, Registration, Registry, check_name
from openlora_jax.errors import (
    AdapterExists,
    CannotInstall,
    InvalidConfig,
    InvalidRequest,
    OpenLoraError,
    UnknownAdapter,
)

KEPT = timedelta(minutes=10)
"""How long an artifact outlives its last name: a request that was admitted with it may have to read it once more."""


class AdapterStore:
    """A directory of adapters. Any number of processes may read and change it at once.

    An artifact whose last name was removed or replaced is kept for requests already admitted with it. It goes with the
    first change to the store that is `KEPT` later, or at once where there is no room on the disk for another.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a store.

        Raises:
            InvalidConfig: `path` is not a directory.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise InvalidConfig("store", f"{path} is not a directory; `openlora convert adapter` creates a store")
        self._artifacts = Artifacts(self.path / "artifacts")
        self._registry = Registry(self.path / "registry.jsonl")

    @classmethod
    def create(cls, path: str | Path) -> "AdapterStore":
        """Opens a store, an empty one if there is none yet. Raises CannotInstall."""
        try:
            (Path(path) / "artifacts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotInstall(path, os.strerror(error.errno) if error.errno else str(error)) from error
        return cls(path)

    def resolve(self, name: str) -> str:
        """The digest that `name` stands for now, whoever made it so. Raises UnknownAdapter, InvalidRequest."""
        return self._registry.resolve(name)

    def members(self, name: str) -> tuple[Member, ...]:
        """What a request for `name` asks for: an adapter with weight 1, or a mix. Raises UnknownAdapter."""
        return self.names().members(name)

    def registrations(self) -> Mapping[str, Registration]:
        """Every adapter's name, and what it stands for."""
        return self.names().adapters

    def names(self) -> Names:
        """Every name, of adapters and mixes; the same object until one changes."""
        return self._registry.names()

    def folder(self, digest: str) -> Path:
        """Where the artifact of that digest is, if it is in the store. Raises BadCheckpoint if it is no digest."""
        return self._artifacts.folder(digest)

    def holds(self, digest: str) -> bool:
        """Whether the artifact is in the store. Raises BadCheckpoint if it is no digest."""
        return self._artifacts.holds(digest)

    def is_remote(self, digest: str) -> bool:
        """Whether its next read fetches it from elsewhere: there is no elsewhere."""
        return False

    def manifest(self, digest: str) -> Manifest:
        """What the artifact holds. Raises BadCheckpoint."""
        return self._artifacts.manifest(digest)

    def read(self, digest: str) -> tuple[Manifest, dict[str, Tensor]]:
        """The whole artifact, in host memory, and in truth what its digest names. Raises BadCheckpoint."""
        return self._artifacts.read(digest)

    def install(self, name: str, manifest: Manifest, tensors: Tensors, replace: bool = False) -> str:
        """Puts an adapter into the store under `name` and returns its digest.

        Killed at any moment, the store holds the state before or the state after. Installing the same content again
        changes nothing.

        Raises:
            InvalidRequest: `name` can be no adapter's name.
            AdapterExists: the name stands for other content, and `replace` is False.
            CannotInstall: the disk is full or not writable.
            ValueError: `tensors` is not what `manifest` states.
        """
        check_name(name)
        digest = artifact_digest(manifest, tensors)
        with self.changing():
            self._sweep(KEPT)
            self._check_free({name: digest}, replace)
            self._place(digest, manifest, tensors)
            self._register({name: digest})
        return digest

    def register(self, digests: Mapping[str, str], replace: bool = False) -> None:
        """Gives names to artifacts that are already in the store: all of them, or none.

        Raises:
            InvalidRequest: a name that can be no adapter's name.
            AdapterExists: a name stands for other content, and `replace` is False.
            BadCheckpoint: an artifact is not there, or damaged.
        """
        for name in digests:
            check_name(name)
        with self.changing():
            for digest in set(digests.values()):
                self.manifest(digest)
            self._check_free(digests, replace)
            self._register(digests)

    def mix(self, name: str, weights: Mapping[str, float], replace: bool = False) -> None:
        """Gives a name to a weighted mix of adapters of this store.

        It holds their names: one that is given to another adapter is so in the mix, and none can be removed before it.

        Raises:
            InvalidRequest: a name or a weight that can be none, adapters for different bases, a member that is a mix, a
                name that is a member, or, unless `replace`, another mix.
            AdapterExists: the name stands for an adapter, and `replace` is False.
            UnknownAdapter: a member is not registered.
            BadCheckpoint: a member is damaged.
        """
        check_name(name)
        check_mix(weights.items())
        with self.changing():
            known = self.names().mixes.get(name)
            if known is None or known.weights != weights:
                self._check_members(name, weights)
                self._check_free({name: None}, replace)
                self._registry.append({name: weights})

    def remove(self, name: str) -> None:
        """Removes a name. An artifact that no other name stands for goes later, see above.

        Raises:
            UnknownAdapter: nothing has that name.
            InvalidRequest: it is a member of a mix.
        """
        with self.changing():
            names = self.names()
            if name not in names.adapters and name not in names.mixes:
                raise UnknownAdapter(name)
            self._check_no_member(name)
            self._registry.append({name: None})
            self._sweep(KEPT)

    def verify(self) -> dict[str, OpenLoraError | None]:
        """Recomputes the digest of every registered artifact: digest -> what is wrong with it, or None."""
        digests = {registration.digest for registration in self.registrations().values()}
        return {digest: self._artifacts.damage(digest) for digest in sorted(digests)}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Holds the store's lock, which the kernel releases if the process dies. Not while a method here takes it."""
        try:
            with open(self.path / "lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise CannotInstall(self.path, os.strerror(error.errno) if error.errno else str(error)) from error

    def _check_free(self, digests: Mapping[str, str | None], replace: bool) -> None:
        """That these names stand for nothing else; None is for what is no adapter."""
        current, mixes = self.registrations(), self.names().mixes
        for name, digest in digests.items():
            if not replace and name in mixes:
                current_mix = mix_text(mixes[name].weights)
                raise InvalidRequest(
                    "name", f"{name!r} is already the mix {current_mix}; use --replace or another name"
                )
            if not replace and name in current and current[name].digest != digest:
                raise AdapterExists(name, current[name].digest)

    def _check_members(self, name: str, weights: Mapping[str, float]) -> None:
        """That a mix of that name can be made of these."""
        self._check_no_member(name)
        if not weights or name in weights:
            raise InvalidRequest("mix", "has itself as a member" if weights else "has no member")
        names = self.names()
        manifests = {member: self.manifest(names.digest(member)) for member in weights}
        first = next(iter(manifests))
        wanted = manifests[first].base_digest
        for member, manifest in manifests.items():
            if manifest.base_digest != wanted:
                bases = f"{manifest.base_digest[:12]}, and {first!r} for {wanted[:12]}"
                raise InvalidRequest("mix", f"{member!r} was converted for base {bases}; mix adapters of one base")
            if manifest.traits.alone and dict(weights) != {member: 1.0}:
                raise InvalidRequest("mix", f"{member!r} {manifest.traits.alone}")

    def _check_no_member(self, name: str) -> None:
        users = [mix for mix, each in self.names().mixes.items() if name in each.weights]
        if users:
            raise InvalidRequest("name", f"{name!r} is a member of the mix {users[0]!r}; remove or replace that first")

    def _register(self, digests: Mapping[str, str]) -> None:
        current = {name: registration.digest for name, registration in self.registrations().items()}
        self._registry.append({name: digest for name, digest in digests.items() if current.get(name) != digest})

    def _place(self, digest: str, manifest: Manifest, tensors: Tensors) -> None:
        """Makes the artifact appear under its digest, whole; a damaged one is written anew."""
        if self.holds(digest):
            if self._artifacts.damage(digest) is None:
                return
            self._artifacts.delete(digest)
        if shutil.disk_usage(self.path).free < manifest.nbytes:
            self._sweep(timedelta())
        free = shutil.disk_usage(self.path).free
        if free < manifest.nbytes:
            raise CannotInstall(self.path, f"the adapter needs {manifest.nbytes:,} bytes, {free:,} are free")
        self._artifacts.add(digest, lambda folder: write_artifact(folder, manifest, tensors))

    def _sweep(self, age: timedelta) -> None:
        """Deletes what killed writers left behind, and artifacts that have had no name for that long."""
        self._artifacts.sweep()
        for digest in self._registry.retired(age):
            if self.holds(digest):
                self._artifacts.delete(digest)
