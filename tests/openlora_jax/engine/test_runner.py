"""Decode programs with and without ensembles, where a step leaves nothing out by a branch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax.adapters.pages import pool_capacities
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.config import EngineConfig
from openlora_jax.engine.plan import StepPlan, Tile
from openlora_jax.engine.request import Ensemble
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.runner import DeviceRunner, ScoredStep
from openlora_jax.engine.sampling import Sampled
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.step import Scores
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.transformer import Transformer
from openlora_jax.model.weights import random_weights, with_values
from pallas_kernels.registry import Ops, implementations
from pallas_kernels.shortcut import declined
from tests.openlora_jax.tiny import MODEL, SETTINGS

CPU = implementations("cpu")
WITHOUT_BRANCHES = replace(CPU, shortcut=declined)
GREEDY = RowSampling(logprobs=1)
PLAIN = [Tile(0, 0, None, (1,), sampling=GREEDY)]
TWO = Ensemble(((), ()), (0.3, 0.7))
JOINED = [Tile(row, 0, None, (1 + row,), sampling=GREEDY, ensemble=TWO, member=row) for row in range(2)]


def make_runner(ops: Ops, **changes: Any) -> DeviceRunner:
    engine = EngineConfig(**SETTINGS | changes)
    model = Transformer(MODEL)
    with_values(model, {name: jnp.asarray(value) for name, value in random_weights(MODEL, seed=0).items()})
    pool = AdapterPool.create(MODEL, pool_capacities(engine), jnp.dtype(engine.dtype))
    return DeviceRunner(engine, MODEL, ops, Parameters.of(model), pool)


def decode(runner: DeviceRunner, tiles: Sequence[Tile]) -> Sampled:
    """A token after each tile's only one, which is another in each slot."""
    for tile in tiles:
        runner.prepare_slot(tile.slot, (5 + tile.slot,), (), SamplingParams(), feed_last=True)
    step: Any = runner.run(StepPlan("decode", tuple(tiles)))
    sampled: Sampled = step.sampled
    return sampled


def test_two_programs_choose_what_one_for_both_chooses() -> None:
    both, apart = make_runner(CPU), make_runner(WITHOUT_BRANCHES)
    for tiles in (PLAIN, JOINED):
        found, expected = decode(apart, tiles), decode(both, tiles)
        count = len(tiles)
        np.testing.assert_array_equal(found.token[:count], expected.token[:count])
        np.testing.assert_allclose(found.logprob[:count], expected.logprob[:count], atol=1e-4)


@pytest.mark.parametrize(
    ("deterministic", "ops", "programs"),
    [
        (False, CPU, {(1, False): "decode[1]", (4, False): "decode[4]"}),
        (False, WITHOUT_BRANCHES, {(1, False): "decode[1]", (4, False): "decode[4]", (4, True): "decode[4] ensembles"}),
        (True, WITHOUT_BRANCHES, {(4, False): "decode[4]"}),
    ],
    ids=["branches", "none", "deterministic"],
)
def test_which_programs_there_are(
    deterministic: bool, ops: Ops, programs: dict[tuple[int, bool], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ensembles one, of the most rows, so that they cost few compiles; without them as many as ever."""
    runner = make_runner(ops, row_buckets=(1, 4), deterministic=deterministic)
    dispatched: list[tuple[int, bool]] = []

    def note(plan: StepPlan, rows: int, joined: bool) -> ScoredStep:
        if plan.kind == "decode":
            dispatched.append((rows, joined))
        return ScoredStep((), (), Scores(*np.zeros((2, 0))))

    monkeypatch.setattr(runner, "_dispatch", note)
    stages: list[str] = []
    runner.compile(lambda name, done, total: stages.append(name))
    assert dict(zip(dispatched, stages, strict=False)) == programs
    for tiles in (PLAIN, JOINED):
        runner.run(StepPlan("decode", tuple(tiles)))
    assert set(dispatched) == programs.keys()
