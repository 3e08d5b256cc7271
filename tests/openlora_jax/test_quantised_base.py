"""A quantised base answers, scores, serves adapters and trains as the plain base that holds its numbers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.config import EngineConfig
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.llm import LLM
from openlora_jax.memory import MemoryPlan
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.stored import parts, weight_bytes
from openlora_jax.model.weights import random_weights, weight_table
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.quantize import quantize
from openlora_jax.training.data import Example
from openlora_jax.training.recipe import Recipe
from openlora_jax.training.train import train
from pallas_kernels.quantized import dense
from pallas_kernels.registry import implementations
from tests.openlora_jax.test_tokenizer import byte_level, write_base
from tests.openlora_jax.tiny import DIGEST, MODEL, SETTINGS

PLAIN = replace(MODEL, hidden_size=64, head_dim=16, intermediate_size=96)
HOW = Quantization(format="int4", group=32, offsets="float16")
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13]]
COMPLETIONS = [[21, 22, 23, 24], [31, 32, 33]]
ADAPTERS = ["one", None]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantised base, and the plain one of its numbers."""
    root = tmp_path_factory.mktemp("bases")
    config = replace(PLAIN, quantization=HOW)
    quantised: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    values = random_weights(PLAIN, seed=0, deviation=0.2)
    for name, weight in weight_table(config).items():
        value: Any = values[name] if weight.quantization is None else quantize(values[name], weight.quantization)
        quantised |= parts(name, value)
        plain[name] = values[name] if weight.quantization is None else np.asarray(dense(value))
    for name, model, arrays in (("few", config, quantised), ("plain", PLAIN, plain)):
        write_base(root / name, byte_level())
        write_weights(root / name, arrays)
        BaseManifest(config=model, dtype="float32", digest=DIGEST, source="random").write(root / name)
    return root / "few", root / "plain"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    install_synthetic(AdapterStore.create(path), PLAIN, DIGEST, {"one": 1, "two": 2}, scale=1.0)
    return path


@pytest.fixture(scope="module")
def engines(bases: tuple[Path, Path], store: Path) -> Iterator[tuple[LLM, LLM]]:
    """They decode one row at a time, which has a form of its own; prefill has more rows."""
    settings = SETTINGS | {"max_rows": 1, "row_buckets": (1,)}
    with LLM(bases[0], store, **settings) as few, LLM(bases[1], store, **settings) as plain:
        yield few, plain


def test_it_scores_and_answers_like_its_numbers(engines: tuple[LLM, LLM]) -> None:
    scores = [llm.score(PROMPTS, COMPLETIONS, ADAPTERS) for llm in engines]
    for few, plain in zip(*scores, strict=True):
        np.testing.assert_allclose(few.logprobs, plain.logprobs, atol=1e-3)
    assert not np.allclose(scores[0][0].logprobs, engines[0].score(PROMPTS, COMPLETIONS)[0].logprobs, atol=1e-3)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    for prompts, adapters in ((PROMPTS, ADAPTERS), (PROMPTS[:1], "two"), (PROMPTS[1:], None)):
        few, plain = (llm.generate(prompts, params, adapters) for llm in engines)
        assert [answer.outputs[0].token_ids for answer in few] == [answer.outputs[0].token_ids for answer in plain]


def test_the_plan_counts_the_bytes_that_are_held(engines: tuple[LLM, LLM]) -> None:
    few, plain = engines
    held = [sum(leaf.nbytes for leaf in jax.tree.leaves(llm.runner.parameters)) for llm in engines]
    tied = [llm.runner.parameters.embed for llm in engines]
    assert few.plan.weights == held[0] - sum(leaf.nbytes for leaf in jax.tree.leaves(tied[0]))
    assert few.plan.weights == weight_bytes(few.model, "float32") < plain.plan.weights / 2


def test_the_plan_has_room_for_a_matrix_of_numbers() -> None:
    """Which prefill makes on a GPU, one at a time."""
    few, plain = (MemoryPlan.of(EngineConfig(), replace(PLAIN, quantization=how)) for how in (HOW, None))
    assert few.activations - plain.activations == 4 * 2 * PLAIN.intermediate_size * PLAIN.hidden_size


def test_an_adapter_can_be_trained_on_it(bases: tuple[Path, Path]) -> None:
    """The base does not learn, so its codes need no gradient."""
    pairs = zip(PROMPTS, COMPLETIONS, strict=True)
    examples = [Example(tuple(prompt + completion), len(prompt)) for prompt, completion in pairs]
    recipe = Recipe.of({"rank": 4, "steps": 3, "batch": 2})
    losses = []
    for base in bases:
        config = BaseManifest.read(base).config
        parameters = Parameters.read(base, config, "float32")
        with jax.numpy_dtype_promotion("standard"):  # for optax, whose schedules raise floats to integer powers
            losses.append(train(parameters, config, implementations("cpu"), examples, recipe)[1])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    assert losses[0][-1] < losses[0][0]
