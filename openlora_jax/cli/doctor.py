"""`openlora doctor`: what would run here, and why."""

import contextlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from openlora_jax import __version__
from openlora_jax.cli.console import output
from openlora_jax.cli.generate import BackendOption, BaseOption, ConfigOption
from openlora_jax.cli.plan_memory import memory_table
from openlora_jax.config import BackendName

if TYPE_CHECKING:
    from serving.config import ServerConfig

PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "tokenizers", "grpcio")


def doctor(
    config: ConfigOption = None,
    backend: BackendOption = None,
    base: BaseOption = None,
) -> None:
    """Prints versions, devices, the implementation chosen for each op and, given a base model, the memory plan.

    The status is 2 where the backend cannot run on this machine, or not this base model.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU may be in use, by a server for example
    import jax

    from openlora_jax.memory import device_memory
    from serving.config import ServerConfig

    settings = ServerConfig.load(config).using(backend)
    base = base or settings.base
    console = output()
    own = {"openlora-jax": __version__, "python": platform.python_version()}
    console.print(_table("versions", own | {name: version(name) for name in PACKAGES}))
    if base is not None:
        console.print(_memory(Path(base), settings))
    with contextlib.suppress(RuntimeError, AssertionError):  # no device: the ops below say so in their own words
        kinds = {str(device): device.device_kind for device in jax.devices()}
        console.print(_table("devices", kinds | {"memory of the first, MB": f"{device_memory() / 1e6:,.1f}"}))
    console.print(_ops(settings.backend, base))


def _ops(backend: BackendName, base: str | Path | None) -> Table:
    from openlora_jax.llm import resolve_ops
    from openlora_jax.model.checkpoint import BaseManifest

    ops = resolve_ops(backend, BaseManifest.read(Path(base)).config if base is not None else None)
    return _table(f"ops of backend {ops.backend}", {op: (each.name, each.reason) for op, each in ops.chosen.items()})


def _memory(base: Path, settings: "ServerConfig") -> Table:
    from openlora_jax.adapters.demand import UNKNOWN
    from openlora_jax.adapters.store import AdapterStore
    from openlora_jax.model.checkpoint import BaseManifest
    from openlora_jax.observed import Observed
    from openlora_jax.planning import demand_of, plan_start

    manifest, engine = BaseManifest.read(base), settings.engine()
    nothing = Observed(base_digest=manifest.digest)
    demand = demand_of(AdapterStore(settings.store), manifest.digest, nothing) if settings.store else UNKNOWN
    return memory_table(plan_start(engine, manifest.config, demand, nothing, engine.device_memory)[1])


def _table(title: str, rows: Mapping[str, str | tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, values in rows.items():
        table.add_row(name, *((values,) if isinstance(values, str) else values))
    return table
