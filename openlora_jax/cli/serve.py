"""`openlora serve`: one engine behind one gRPC port, until SIGTERM."""

import asyncio
import logging
import signal
from typing import Annotated

import typer

from openlora_jax.cli.generate import BackendOption, ConfigOption
from openlora_jax.cli.loading import load
from openlora_jax.errors import InvalidConfig


def serve(
    config: ConfigOption = None,
    base: Annotated[str | None, typer.Option(help="Converted base model.", show_default="from the config")] = None,
    store: Annotated[str | None, typer.Option(help="Adapter store.", show_default="from the config")] = None,
    remote: Annotated[
        str | None,
        typer.Option(help="URL of a store for adapters that are not in the local one.", show_default="from the config"),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="Loopback HOST:PORT.", show_default="from the config")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Loopback HOST:PORT for Prometheus to scrape.", show_default="from the config, or none"),
    ] = None,
    backend: BackendOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings alone, not every call.")] = False,
) -> None:
    """Serve a base model and its adapters over gRPC, on loopback, until SIGTERM."""
    from serving.config import ServerConfig
    from serving.server import serve as run

    given = {"base": base, "store": store, "remote": remote, "listen": listen, "metrics": metrics}
    named = {key: value for key, value in given.items() if value}
    settings = ServerConfig.load(config).using(backend).model_copy(update=named)
    found = _given("base", settings.base), _given("store", settings.store)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for package in ("openlora_jax", "serving"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while programs compile; the server drains at it
    asyncio.run(
        run(
            lambda: load(*found, config=settings.engine(), remember=True),
            settings.listen,
            settings.metrics,
            grace=settings.grace,
            announce=lambda address: typer.echo(f"serving on {address}"),
        )
    )


def _given(name: str, value: str | None) -> str:
    if value is None:
        raise InvalidConfig(name, f"is not set; give --{name}, or `{name}:` in the configuration")
    return value
