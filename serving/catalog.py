"""The registered adapters and where each of them is: the store's names joined with the residency in memory."""

import threading
from collections.abc import Mapping

from openlora_jax.adapters.registry import Names
from openlora_jax.errors import BadCheckpoint, InvalidRequest
from serving.engine import LLM, AdapterStatus, Store
from serving.proto import openlora_pb2 as pb

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

STATES: Mapping[str, pb.AdapterState] = {
    "absent": pb.ADAPTER_STATE_DISK,
    "loading": pb.ADAPTER_STATE_LOADING,
    "host": pb.ADAPTER_STATE_HOST,
    "resident": pb.ADAPTER_STATE_DEVICE,
    "draining": pb.ADAPTER_STATE_DRAINING,
}
"""What the adapter cache calls a state -> what the wire calls it; one that it does not know is on disk."""


class Catalog:
    """Every method raises UnknownAdapter for a name that is none; of a mix, what is asked is done to each member.

    The size of what a digest names never changes, so a manifest is read once; damage that comes later shows in loads.
    Only sizes are kept: manifests take 20 to 50 kB each in memory.
    """

    def __init__(self) -> None:
        self._sizes = dict[str, tuple[int, int]]()

    def page(self, llm: LLM, size: int, token: str, in_memory_only: bool = False) -> pb.ListAdaptersResponse:
        """The next `size` adapters after the name `token`, by name. A page token is the last name of its page.

        Raises:
            InvalidRequest: a size out of range.
        """
        if not 0 <= size <= MAX_PAGE_SIZE:
            raise InvalidRequest("page_size", f"is {size}; give 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}")
        names, in_memory = llm.store.names(), _in_memory(llm)
        if in_memory_only:
            listed = [name for name, entry in names.adapters.items() if entry.digest in in_memory]
        else:
            listed = [*names.adapters, *names.mixes]
        following = sorted(name for name in listed if name > token)
        shown = following[: size or DEFAULT_PAGE_SIZE]
        return pb.ListAdaptersResponse(
            adapters=[self._adapter(llm, name, names, in_memory) for name in shown],
            next_page_token=shown[-1] if len(shown) < len(following) else "",
            total=len(listed),
        )

    def get(self, llm: LLM, name: str) -> pb.Adapter:
        return self._adapter(llm, name, llm.store.names(), _in_memory(llm))

    def load(self, llm: LLM, name: str, given_up: threading.Event) -> pb.Adapter:
        """Raises CancelledError soon after it was given up."""
        for member in llm.store.members(name):
            llm.adapters.load(member.adapter, member.digest, given_up)
        return self.get(llm, name)

    def unload(self, llm: LLM, name: str) -> pb.Adapter:
        for member in llm.store.members(name):
            llm.adapters.unload(member.digest)
        return self.get(llm, name)

    def pin(self, llm: LLM, name: str, pinned: bool) -> pb.Adapter:
        for member in llm.store.members(name):
            llm.adapters.pin(member.adapter, pinned)
        return self.get(llm, name)

    def _adapter(self, llm: LLM, name: str, names: Names, in_memory: Mapping[str, AdapterStatus]) -> pb.Adapter:
        if mix := names.mixes.get(name):
            items = [pb.MixItem(adapter=member, weight=weight) for member, weight in mix.weights.items()]
            return pb.Adapter(name=name, mix=pb.Mix(items=items))
        digest = names.digest(name)
        adapter = pb.Adapter(name=name, digest=digest, state=pb.ADAPTER_STATE_DISK)
        if status := in_memory.get(digest):
            adapter.state, adapter.requests, adapter.pinned = STATES[status.state], status.requests, status.pinned
            adapter.host_bytes = status.host_bytes
        counters = llm.adapters.counters
        if use := counters.use(digest):
            adapter.lookups, adapter.hits, adapter.idle_seconds = use.requests, use.hits, counters.since(use)
            if use.load_seconds is not None:
                adapter.load_seconds = use.load_seconds
        remote, size = llm.store.is_remote(digest), None
        if not remote:
            try:
                size = self._size(llm.store, digest)
            except (BadCheckpoint, OSError):  # one that cannot be read hides no other from a listing
                remote = llm.store.is_remote(digest)  # what was fetched may have left the disk just now
        if size:
            adapter.rank, adapter.pages = size
        elif not remote:
            adapter.state = pb.ADAPTER_STATE_DAMAGED
        elif adapter.state == pb.ADAPTER_STATE_DISK:
            adapter.state = pb.ADAPTER_STATE_REMOTE
        return adapter

    def _size(self, store: Store, digest: str) -> tuple[int, int]:
        """An adapter's largest rank, and its pages. Raises BadCheckpoint, OSError."""
        size = self._sizes.get(digest)
        if size is None:
            manifest = store.manifest(digest)
            rank = max((module.rank for module in manifest.modules.values()), default=0)
            size = self._sizes[digest] = rank, sum(manifest.pages.values())
        return size


def _in_memory(llm: LLM) -> Mapping[str, AdapterStatus]:
    return {status.digest: status for status in llm.adapters.status()}
