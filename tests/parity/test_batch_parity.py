"""Who else is in the batch changes nothing: adapters of every rank, mixes and base rows, together and alone."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from openlora_jax import SamplingParams
from openlora_jax.config import EngineConfig
from openlora_jax.llm import LLM
from tests.parity.cases import VOCABULARY
from tests.parity.conftest import House
from tests.parity.goldens import MOVED, Row, Scores, base_directory, max_difference
from tests.parity.random_adapter import linear_shapes, write_random_adapter

BOUND = 1e-4
RANKS = (1, 2, 3, 4, 8, 12, 15, 16, 17, 24, 31, 32, 48, 64, 100, 128)
SHAPES = linear_shapes(hidden=64, q=64, kv=32, mlp=96)
MODULES = [module.split(".")[-1] for module in SHAPES]
BASE = base_directory("llama")
MIXES = (
    {"random_1": 0.5, "random_128": -0.5},
    {"random_17": 1.0, "random_4": 0.3, "random_64": 0.2},
    {f"random_{rank}": 0.45 - 0.1 * (rank % 7) for rank in RANKS[3:11]},
)

CONFIG = EngineConfig(
    max_rows=24,
    row_buckets=(1, 24),
    prefill_chunk=256,
    chunk_buckets=(16, 256),
    max_model_len=256,
    kv_block=16,
    kv_blocks=385,
    pool_pages=129,
    wide_pool_pages=2,
)
"""Room for the whole batch at once, and a program for one row, so that a row alone takes another way."""

Adapters = list[dict[str, float] | None]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = tmp_path_factory.mktemp("batch")
    house = House(directory / "house", CONFIG)
    for index, rank in enumerate(RANKS):
        # Every number of modules from one to seven, each time others.
        ranks = {MODULES[(index + offset) % 7]: rank for offset in range(1 + index % 7)}
        path = directory / f"random_{rank}"
        write_random_adapter(path, SHAPES, ranks, layers=2, size=0.5, seed=index)
        house.install(path.name, path, BASE)
    yield house.llm(BASE)
    house.close()


@pytest.fixture(scope="module")
def batch() -> tuple[list[Row], Adapters]:
    """A row for each adapter and mix, and base rows between them; lengths from one token to several chunks."""
    adapters: Adapters = []
    for index, rank in enumerate(RANKS):
        adapters += [{f"random_{rank}": 1.0}, *([None] if index % 4 == 0 else [])]
    adapters += MIXES
    generator = np.random.default_rng(5)
    rows = []
    for index in range(len(adapters)):
        prompt, completion = 1 + index * 37 % 130, 1 + index * 5 % 18
        ids = generator.integers(0, VOCABULARY, prompt + completion).tolist()
        rows.append(Row(tuple(ids[:prompt]), tuple(ids[prompt:])))
    return rows, adapters


def score(llm: LLM, rows: list[Row], adapters: Adapters) -> Scores:
    scored = llm.score([row.prompt_ids for row in rows], [row.completion_ids for row in rows], adapters=adapters)
    return [list(each.logprobs) for each in scored]


def test_scores_of_a_mixed_batch_equal_each_row_alone(llm: LLM, batch: tuple[list[Row], Adapters]) -> None:
    rows, adapters = batch
    together = score(llm, rows, adapters)
    alone = [score(llm, [row], [adapter])[0] for row, adapter in zip(rows, adapters, strict=True)]
    assert max_difference(together, alone) <= BOUND


def test_every_adapter_of_the_batch_matters(llm: LLM, batch: tuple[list[Row], Adapters]) -> None:
    row = batch[0][-1]
    plain = score(llm, [row], [None])
    for adapter in batch[1]:
        if adapter is not None:
            assert max_difference(score(llm, [row], [adapter]), plain) >= MOVED, json.dumps(adapter)


def test_swapped_adapters_are_noticed(llm: LLM, batch: tuple[list[Row], Adapters]) -> None:
    rows, adapters = batch
    assert max_difference(score(llm, rows, adapters), score(llm, rows, adapters[::-1])) >= MOVED


def test_generation_in_a_mixed_batch_equals_each_row_alone(llm: LLM, batch: tuple[list[Row], Adapters]) -> None:
    rows, adapters = batch
    params = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=1)
    together = llm.generate([row.prompt_ids for row in rows], params, adapters)
    for answer, row, adapter in zip(together, rows, adapters, strict=True):
        alone = llm.generate([row.prompt_ids], params, [adapter])[0]
        assert answer.outputs[0].token_ids == alone.outputs[0].token_ids
        differences = [
            abs(a.logprob - b.logprob)
            for a, b in zip(answer.outputs[0].logprobs, alone.outputs[0].logprobs, strict=True)
        ]
        assert max(differences) <= BOUND


def test_generated_tokens_score_as_they_were_generated(llm: LLM, batch: tuple[list[Row], Adapters]) -> None:
    rows, adapters = batch
    params = SamplingParams(max_tokens=20, ignore_eos=True, logprobs=1)
    answers = llm.generate([row.prompt_ids for row in rows], params, adapters)
    outputs = [answer.outputs[0] for answer in answers]
    scored = llm.score([row.prompt_ids for row in rows], [output.token_ids for output in outputs], adapters=adapters)
    generated = [[token.logprob for token in output.logprobs] for output in outputs]
    assert max_difference(generated, [list(each.logprobs) for each in scored]) <= BOUND
    assert all(all(each.greedy) for each in scored)
