"""A step's work list, and what the host refuses before it is dispatched."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import pytest

from openlora_jax.adapters.modules import MODULES, POOLS
from openlora_jax.adapters.pages import pool_capacities
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.config import EngineConfig
from openlora_jax.engine.plan import StepPlan, Tile
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.runner import DeviceRunner
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.work import work_list
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.transformer import Transformer
from openlora_jax.model.weights import random_weights, with_values
from pallas_kernels.registry import implementations
from tests.openlora_jax.tiny import MODEL, SETTINGS

TILE = Tile(slot=0, start=0, tokens=None, blocks=(1,), sampling=RowSampling.of(SamplingParams(), seed=0))


def of_pages(*pages: int, pool: str = "q_proj") -> Tile:
    return replace(TILE, pages=(({pool: pages}, 0.5),))


def test_items_are_sorted_by_tile() -> None:
    work = work_list([of_pages(3), TILE, of_pages(2, 1)], 4, 5, {"q_proj": 4})
    row = MODULES.index("q_proj")
    assert [list(field[row][:3]) for field in (work.tile, work.page, work.scale)] == [[0, 2, 2], [3, 2, 1], [0.5] * 3]
    assert list(work.start[row]) == [0, 1, 1, 3, 3]


@pytest.mark.parametrize("pool", POOLS)
def test_a_page_that_no_pool_of_its_kind_has_is_refused(pool: str) -> None:
    """On a CPU a step would read the nearest page that there is."""
    work_list([of_pages(3, pool=pool)], 1, 1, {pool: 4})
    with pytest.raises(ValueError, match=f"page of {pool} 4 in one step, where there are 4"):
        work_list([of_pages(4, pool=pool)], 1, 1, {pool: 4})


@pytest.fixture(scope="module")
def runner() -> DeviceRunner:
    engine = EngineConfig(**SETTINGS)
    model = Transformer(MODEL)
    with_values(model, {name: jnp.asarray(value) for name, value in random_weights(MODEL, seed=0).items()})
    pool = AdapterPool.create(MODEL, pool_capacities(engine), jnp.dtype(engine.dtype))
    return DeviceRunner(engine, MODEL, implementations("cpu"), Parameters.of(model), pool)


ENGINE = EngineConfig(**SETTINGS)
REFUSED: dict[str, Sequence[Tile]] = {
    f"page of q_proj {ENGINE.pool_pages} in one step, where there are {ENGINE.pool_pages}": [
        of_pages(1, ENGINE.pool_pages)
    ],
    f"page of q_proj -1 in one step, where there are {ENGINE.pool_pages}": [of_pages(-1)],
    f"KV block {ENGINE.kv_blocks} in one step, where there are {ENGINE.kv_blocks}": [
        replace(TILE, blocks=(ENGINE.kv_blocks,))
    ],
    f"slot {ENGINE.max_rows} in one step, where there are {ENGINE.max_rows}": [replace(TILE, slot=ENGINE.max_rows)],
    f"{ENGINE.max_rows + 1} tiles in one decode step, where the largest has {ENGINE.max_rows}": (
        [TILE] * (ENGINE.max_rows + 1)
    ),
    f"{ENGINE.work_items + 1} items of q_proj in one step, where work_items is {ENGINE.work_items}": [
        of_pages(*[1] * (ENGINE.work_items + 1))
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_exist_is_refused_before_it_is_dispatched(runner: DeviceRunner, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        runner.run(StepPlan("decode", tuple(REFUSED[reason])))
