"""Who answers `generate` and `score`: an engine in this process, or a server."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from openlora_jax.cli import loading
from openlora_jax.cli.local_session import LocalSession, check_adapters
from openlora_jax.cli.rows import Line
from openlora_jax.cli.server_session import ServerSession
from openlora_jax.config import BackendName
from openlora_jax.engine.request import Scored
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import GenerateInput, ScoreInput
from openlora_jax.outputs import Generation


class Session(Protocol):
    """Results come in the order of the lines; an error ends the iterator, in its turn."""

    def generate(self, lines: Sequence[Line[GenerateInput]]) -> Iterator[Generation]: ...

    def score(self, lines: Sequence[Line[ScoreInput]]) -> Iterator[Scored]: ...

    def stream(self, row: GenerateInput) -> Iterator[str]:
        """The text of the first sample as it comes."""


def open_session(
    base: str | None,
    store: str | None,
    config: str | None,
    backend: BackendName | None,
    server: str | None,
    lines: Sequence[Line[Any]],
) -> AbstractContextManager[Session]:
    """A session with the server if one is named, else with an engine of its own, for these lines.

    What is not named of base, store and backend, the configuration may name, as for `openlora serve`.

    Raises:
        InvalidRequest: neither or both are named.
        UnknownAdapter: a line names one that the store has not; its note says which line.
        InvalidConfig, BadCheckpoint: as LLM does.
    """
    from serving.config import ServerConfig

    if server is not None and base is None:
        return ServerSession(server)
    settings = ServerConfig.load(config)
    base, store = base or settings.base, store or settings.store
    if base is None or server is not None:
        raise InvalidRequest("--base", "give --base for an engine here, or --server for one that runs elsewhere")
    if store is not None and settings.remote is None:
        check_adapters(store, lines)
    return LocalSession(loading.load(base, store, config=settings.using(backend).engine()))
