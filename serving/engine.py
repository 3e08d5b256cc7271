"""What the server needs of the library, and nothing more; `openlora_jax.llm.LLM` has it."""

import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from openlora_jax.adapters.counters import Counters, MemoryUse
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.mixes import Member
from openlora_jax.adapters.registry import Names, Registration
from openlora_jax.config import EngineConfig
from openlora_jax.engine.engine import EngineStats
from openlora_jax.engine.request import Event, GenerateRequest, ScoreRequest
from openlora_jax.inputs import Tokenizer


class EventStream(Protocol):
    """One request's events; ends after its last event, or raises the OpenLoraError that ended it."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def cancel(self) -> None:
        """Frees what the request holds, within one step. Any thread, any number of times."""


class Engine(Protocol):
    @property
    def ended(self) -> "Future[str]":
        """Done when the engine runs no more; its result says why."""

    @property
    def stats(self) -> EngineStats: ...

    def submit(self, request: GenerateRequest | ScoreRequest) -> EventStream:
        """Admits a request, or raises InvalidRequest, UnknownAdapter, Overloaded or EngineStopped at once."""


class Store(Protocol):
    """The registered adapters on disk."""

    def members(self, name: str) -> Sequence[Member]:
        """The adapters that a name stands for, or raises UnknownAdapter."""

    def registrations(self) -> Mapping[str, Registration]: ...

    def names(self) -> Names:
        """Adapters and mixes."""

    def is_remote(self, digest: str) -> bool:
        """Whether its next read fetches it, so that not even its manifest is at hand."""

    def manifest(self, digest: str) -> Manifest: ...


class AdapterStatus(Protocol):
    """Where one adapter is in memory, and how many requests use it or wait for it."""

    @property
    def digest(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def requests(self) -> int: ...
    @property
    def pinned(self) -> bool: ...
    @property
    def host_bytes(self) -> int: ...


class AdapterCache(Protocol):
    """The adapters in memory. Any thread."""

    @property
    def counters(self) -> Counters: ...

    def memory(self) -> MemoryUse: ...

    def status(self) -> Sequence[AdapterStatus]: ...

    def load(self, name: str, digest: str, given_up: threading.Event) -> None:
        """Waits until the adapter is in host memory; raises AdapterUnavailable, or CancelledError if given up."""

    def unload(self, digest: str) -> None: ...

    def pin(self, name: str, pinned: bool) -> None:
        """Keeps what the name stands for, now and later, on the device once it is there."""


class MemoryPlan(Protocol):
    """Bytes of the device by what they are for; of adapters' pages, by module."""

    @property
    def weights(self) -> int: ...
    @property
    def kv(self) -> int: ...
    @property
    def pools(self) -> Mapping[str, int]: ...
    @property
    def sampler(self) -> int: ...
    @property
    def activations(self) -> int: ...


class Model(Protocol):
    @property
    def vocab_size(self) -> int: ...


class LLM(Protocol):
    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def store(self) -> Store: ...
    @property
    def adapters(self) -> AdapterCache: ...
    @property
    def config(self) -> EngineConfig: ...
    @property
    def model(self) -> Model: ...
    @property
    def plan(self) -> MemoryPlan: ...
    @property
    def base_digest(self) -> str: ...
    @property
    def backend(self) -> str: ...

    def close(self) -> None:
        """Ends what is running with EngineStopped, and stops all threads."""
