"""Settings of one server: those of its engine, and where it listens."""

from typing import Annotated

from pydantic import Field

from openlora_jax.config import EngineConfig


class ServerConfig(EngineConfig):
    """A deployment in one YAML file.

    Attributes:
        base: directory of the converted base model.
        store: directory of the adapter store.
        listen: loopback HOST:PORT.
        metrics: loopback HOST:PORT where Prometheus finds metrics over HTTP; None for no metrics.
        grace: how long requests in progress may go on after SIGTERM, in seconds.
    """

    base: str | None = None
    store: str | None = None
    listen: str = "127.0.0.1:50051"
    metrics: str | None = None
    grace: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 30.0

    def engine(self) -> EngineConfig:
        """The settings of the engine alone."""
        return EngineConfig.of(self.model_dump(exclude_unset=True, include=set(EngineConfig.model_fields)))
