"""The memory plan of an engine that would start now: by its settings, what is registered, and what the last one saw."""

import logging
from pathlib import Path

from openlora_jax.adapters.demand import NONE, UNKNOWN, Demand
from openlora_jax.adapters.modules import INT4, INT4_COLUMNS, page_shapes
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import EngineConfig
from openlora_jax.errors import BadCheckpoint, InvalidConfig
from openlora_jax.memory import MemoryPlan
from openlora_jax.model.config import ModelConfig
from openlora_jax.observed import Observed

log = logging.getLogger(__name__)


def plan_start(
    config: EngineConfig, model: ModelConfig, demand: Demand, observed: Observed, budget: int | None
) -> tuple[EngineConfig, MemoryPlan]:
    """The settings that will be in force, and what will be held; see `MemoryPlan.of`.

    Raises:
        InvalidConfig: a longer context than the base model's, or pages that no adapter of it can have.
    """
    config = _fitting(config, model)
    _check_int4(config, model)
    plan = MemoryPlan.of(config, model, demand, observed, budget)
    return config.model_copy(update={"kv_blocks": plan.kv_blocks}), plan


def demand_of(store: AdapterStore | None, base_digest: str, observed: Observed) -> Demand:
    """The adapters that may be asked for; of a damaged registry nothing is known."""
    if store is None:
        return NONE
    try:
        return Demand.of(store, base_digest, observed.uses)
    except BadCheckpoint as error:  # requests that name an adapter will be told so
        log.warning("planned without what is registered: %s", error)
        return UNKNOWN


def asked_before(store: AdapterStore | None, observed: Observed) -> dict[str, float]:
    """The requests of the last start by digest, as far as they are registered still; they count half by now."""
    try:
        registered = {each.digest for each in store.registrations().values()} if store and observed.uses else set[str]()
    except BadCheckpoint:  # `demand_of` has said so
        registered = set()
    return {digest: count / 2 for digest, count in observed.uses.items() if digest in registered}


def observed_before(path: Path | None, base_digest: str) -> Observed:
    """What the last start kept at a path; nothing if it did not, or if the file is damaged."""
    if path is not None:
        try:
            return Observed.read(path, base_digest)
        except BadCheckpoint as error:
            log.warning("planned without what was observed: %s", error)
    return Observed(base_digest=base_digest)


def _check_int4(config: EngineConfig, model: ModelConfig) -> None:
    """Raises InvalidConfig for pages in 4 bits where there can be none; 1 is the zero page alone."""
    if config.int4_pages is not None and config.int4_pages > 1 and page_shapes(model).keys().isdisjoint(INT4):
        problem = f"this base has a width that is no multiple of {INT4_COLUMNS}, so no such pages; leave it out"
        raise InvalidConfig("int4_pages", problem)


def _fitting(config: EngineConfig, model: ModelConfig) -> EngineConfig:
    """The settings, with a context no longer than the model's."""
    if config.max_model_len <= model.max_position:
        return config
    if "max_model_len" in config.model_fields_set:
        problem = f"{config.max_model_len} is more than the {model.max_position} positions of the base model"
        raise InvalidConfig("max_model_len", problem)
    return config.model_copy(update={"max_model_len": model.max_position})
