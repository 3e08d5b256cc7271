"""SmolLM2-135M-Instruct against transformers and peft, from committed answers for the same dequantised weights."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.adapter import convert_adapter
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import EngineConfig
from openlora_jax.llm import LLM
from openlora_jax.model.checkpoint import BaseManifest
from tests.parity.goldens import BOUND, MOVED, Scores, max_difference
from tests.parity.smollm2 import ADAPTED_ROWS, ADAPTERS, MIX, SmolLM2Goldens, write_adapters

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).parents[2]
CONFIG = EngineConfig(
    max_rows=16, row_buckets=(16,), prefill_chunk=256, chunk_buckets=(256,), max_model_len=1024, pool_pages=17
)
ADAPTED: dict[str, dict[str, float]] = {name: {name: 1.0} for name in ADAPTERS} | {"mix": MIX}


@pytest.fixture(scope="module")
def goldens() -> SmolLM2Goldens:
    return SmolLM2Goldens.load()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    base = Path(os.environ.get("OPENLORA_SMOLLM2_BASE", ROOT / ".cache/base/smollm2-135m-instruct"))
    if not base.exists():
        pytest.skip(f"no {base}: `make base` makes it, OPENLORA_SMOLLM2_BASE names another")
    directory = tmp_path_factory.mktemp("smollm2")
    store = AdapterStore.create(directory / "store")
    for name, path in write_adapters(directory / "adapters").items():
        conversion = convert_adapter(path, BaseManifest.read(base))
        store.install(name, conversion.manifest, conversion.tensors)
    with LLM(base, store.path, config=CONFIG) as llm:
        yield llm


def adapted_scores(llm: LLM, goldens: SmolLM2Goldens, adapters: dict[str, float] | None) -> Scores:
    rows = [prompt.row for prompt in goldens.prompts[:ADAPTED_ROWS]]
    scored = llm.score([row.prompt_ids for row in rows], [row.completion_ids for row in rows], adapters=adapters)
    return [list(each.logprobs) for each in scored]


def expected(goldens: SmolLM2Goldens, name: str) -> Scores:
    return goldens.mix if name == "mix" else goldens.adapters[name]


def test_base_scores_as_with_transformers(llm: LLM, goldens: SmolLM2Goldens) -> None:
    rows = [prompt.row for prompt in goldens.prompts]
    scored = llm.score([row.prompt_ids for row in rows], [row.completion_ids for row in rows])
    wanted = [prompt.logprobs for prompt in goldens.prompts]
    assert max_difference([list(each.logprobs) for each in scored], wanted) <= BOUND
    for each, prompt in zip(scored, goldens.prompts, strict=True):
        assert all(want is None or got == want for got, want in zip(each.greedy, prompt.greedy, strict=True))


@pytest.mark.parametrize("name", ADAPTED)
def test_adapter_scores_as_with_peft(name: str, llm: LLM, goldens: SmolLM2Goldens) -> None:
    assert max_difference(adapted_scores(llm, goldens, ADAPTED[name]), expected(goldens, name)) <= BOUND


@pytest.mark.parametrize("name", ADAPTED)
def test_a_dropped_or_doubled_adapter_is_noticed(name: str, llm: LLM, goldens: SmolLM2Goldens) -> None:
    doubled = {adapter: 2 * weight for adapter, weight in ADAPTED[name].items()}
    for wrong in (None, doubled):
        assert max_difference(adapted_scores(llm, goldens, wrong), expected(goldens, name)) >= MOVED


def test_prompts_become_the_ids_of_transformers(llm: LLM, goldens: SmolLM2Goldens) -> None:
    for prompt in goldens.prompts:
        if "messages" in prompt.source:
            ids = llm.tokenizer.encode_chat(prompt.source["messages"])
        else:
            ids = llm.tokenizer.encode(prompt.source["prompt"])
        assert tuple(ids) == prompt.row.prompt_ids
        assert tuple(llm.tokenizer.encode(prompt.completion, special=False)) == prompt.row.completion_ids
