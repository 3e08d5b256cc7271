"""`openlora plan-memory`: what a device would hold, and how many adapters of which rank."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Column, Table

from openlora_jax.cli.console import output
from openlora_jax.cli.generate import ConfigOption, StoreOption
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig

if TYPE_CHECKING:
    from openlora_jax.memory import MemoryPlan
    from openlora_jax.model.config import ModelConfig
    from serving.config import ServerConfig

RANKS = (16, 32, 64, 128, 256)


def plan_memory(
    base: Annotated[Path, typer.Option(help="Converted base model.", show_default=False)],
    device: Annotated[
        str | None,
        typer.Option(
            help="A shipped configuration's name, such as h100-80g, or bytes, such as 24GB.",
            show_default="this machine's",
        ),
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Prints the memory plan of a server on a device, and how many adapters of which rank would fit it.

    With a store, the plan is that of its adapters, and of what a server of that store has observed. Nothing is loaded.
    """
    from openlora_jax.adapters.demand import UNKNOWN
    from openlora_jax.adapters.store import AdapterStore
    from openlora_jax.memory import memory_budget
    from openlora_jax.model.checkpoint import BaseManifest
    from openlora_jax.observed import observed_path
    from openlora_jax.planning import demand_of, observed_before, plan_start

    logging.basicConfig(format="openlora: %(message)s")
    manifest, settings = BaseManifest.read(base), _settings(device, config)
    engine, named = settings.engine(), store or settings.store
    budget = engine.device_memory if device else memory_budget(engine)
    adapters = AdapterStore(named) if named else None
    observed = observed_before(observed_path(Path(named), manifest.digest) if named else None, manifest.digest)
    demand = demand_of(adapters, manifest.digest, observed) if adapters else UNKNOWN
    _, plan = plan_start(engine, manifest.config, demand, observed, budget)
    if budget is not None:
        plan.check(budget)
    console = output()
    console.print(memory_table(plan))
    console.print(_capacity(engine, manifest.config, budget))
    if adapters:
        names = len(adapters.registrations())
        console.print(f"{names:,} adapters are registered; {demand.fit(plan.pages):,} of them fit at once, on average.")


def memory_table(plan: "MemoryPlan") -> Table:
    """A plan, line by line."""
    table = Table("", "count", "MB", title="device memory", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row("weights", "", _mb(plan.weights))
    table.add_row(plan.kv_name, str(plan.kv_blocks), _mb(plan.kv))
    for module, size in plan.pools.items():
        table.add_row(f"adapter pages of {module}", str(plan.pages[module]), _mb(size))
    table.add_row("sampler", "", _mb(plan.sampler))
    table.add_row("activations, at most", "", _mb(plan.activations))
    table.add_row("in all", "", _mb(plan.total))
    return table


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _capacity(engine: EngineConfig, model: "ModelConfig", budget: int | None) -> Table:
    """Adapters at once, were all of them of one rank and on the same modules."""
    from openlora_jax.adapters.demand import LINEAR, Demand
    from openlora_jax.adapters.modules import PAGE_RANK
    from openlora_jax.memory import MemoryPlan

    targets = {"on q and v": ("q_proj", "v_proj"), "on all linear modules": LINEAR}
    table = Table("rank", *(Column(name, justify="right") for name in targets))
    table.title, table.title_justify = "adapters that fit at once, if all are alike", "left"
    for rank in RANKS:
        alike = [Demand({tuple((module, rank // PAGE_RANK) for module in modules): 1}) for modules in targets.values()]
        fitting = [each.fit(MemoryPlan.of(engine, model, each, None, budget).pages) for each in alike]
        table.add_row(f"up to {rank}", *(f"{number:,}" for number in fitting))
    return table


def _settings(device: str | None, config: str | None) -> "ServerConfig":
    """The settings of a configuration, with the memory of a device; of the device, where it names a configuration."""
    from serving.config import ServerConfig

    settings = ServerConfig.load(config) if config else None
    if device is None:
        return settings or ServerConfig()
    try:
        memory, found = TypeAdapter(ByteSize).validate_python(device), ServerConfig()
    except ValidationError:
        found = ServerConfig.load(device)
        if found.device_memory is None:
            raise InvalidConfig(device, "names no device_memory; give bytes, such as 24GB") from None
        memory = found.device_memory
    return (settings or found).model_copy(update={"device_memory": memory})
