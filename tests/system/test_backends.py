"""Whole steps with the kernels of CUDA, interpreted, answer as the CPU does: what takes minutes to compile is slow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import openlora_jax.demo
from convert.adapter import convert_adapter
from openlora_jax import LLM, SamplingParams, ensemble
from openlora_jax.adapters.few_bits import Rounding
from openlora_jax.adapters.manifest import Manifest, SavedModule
from openlora_jax.adapters.modules import MODULES, SAVEABLE, module_shapes
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic, synthetic_manifest, synthetic_tensors
from openlora_jax.config import BackendName, EngineConfig
from openlora_jax.demo.prompts import PROMPTS as DEMO
from openlora_jax.engine.runner import DeviceRunner
from openlora_jax.inputs import Prompt, Target
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import random_weights
from openlora_jax.outputs import Generation
from pallas_kernels.registry import Ops, implementations
from tests.openlora_jax.test_int4_pages import EVERYWHERE, WIDE
from tests.openlora_jax.test_tokenizer import byte_level, write_base
from tests.openlora_jax.tiny import DIGEST, SETTINGS
from tests.system.compare import BOUND, GREEDY, assert_same, tokens

ROWS = 9
CONFIG = EngineConfig(**SETTINGS | {"max_rows": ROWS, "row_buckets": (ROWS,)})
SHORT = GREEDY.model_copy(update={"max_tokens": 6})
SAMPLED = SHORT.model_copy(update={"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 3})
LONG = list(range(3, 43))
"""More than one chunk, and three KV blocks."""
BATCH: list[tuple[Prompt, SamplingParams, Target]] = [
    (LONG, SHORT, None),
    ([5, 6, 7], SHORT, "plain"),
    ([8, 9], SHORT, "int4"),
    ([10] * 20, SHORT, "gains"),
    ([11, 12, 13], SHORT, "own"),
    (LONG[::-1], SHORT, {"plain": 0.6, "int4": -0.5}),
    ([5, 6, 7], SAMPLED, {"int4": 0.5, "plain": 0.5}),
    ([14, 15], SHORT, ensemble(["plain", "gains"])),
]
Paths = tuple[Path, Path]


def structured_as_cuda() -> Ops:
    """What runs on a GPU, its kernels interpreted."""
    cuda, interpreted = implementations("cuda"), implementations("interpret")
    plain = {op: getattr(cuda, op) for op, each in cuda.chosen.items() if each.name != "pallas_triton"}
    return replace(interpreted, **plain)


def test_a_step_structured_as_on_a_gpu_answers_as_the_cpu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base, an adapter and a mix in one batch; unrolled, without branches, by scatters."""
    shallow = replace(WIDE, num_layers=1)
    _write(tmp_path / "base", shallow)
    store = AdapterStore.create(tmp_path / "store")
    install_synthetic(store, shallow, DIGEST, {"one": 1, "two": 2}, rank=20, scale=0.5)
    monkeypatch.setattr(DeviceRunner, "compile", lambda self, progress: None)  # of all programs two are needed
    answers = []
    for structure in (implementations("cpu"), structured_as_cuda()):
        monkeypatch.setattr("openlora_jax.llm.resolve", lambda *_, ops=structure: ops)
        with LLM(tmp_path / "base", store.path, config=EngineConfig(**SETTINGS)) as llm:
            answers.append(llm.generate([LONG, [5, 6, 7], [8, 9]], SHORT, [None, "one", {"one": 0.6, "two": -0.5}]))
    compared = sum(assert_same(found, wanted) for wanted, found in zip(*answers, strict=True))
    assert compared >= 0.9 * 3 * SHORT.max_tokens


def _write(base: Path, model: ModelConfig) -> None:
    base.mkdir()
    write_base(base, byte_level())
    write_weights(base, random_weights(model, seed=0, deviation=0.2))
    BaseManifest(config=model, dtype="float32", digest=DIGEST, source="random").write(base)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A tiny base, and a store of low-rank adapters, plain and in 4 bits, of one with gains, and one with a head."""
    base, store = (tmp_path_factory.mktemp("backends") / name for name in ("base", "store"))
    _write(base, WIDE)
    opened = AdapterStore.create(store)
    few_bits = Rounding("int4", dtype="float32")
    install_synthetic(opened, WIDE, DIGEST, {"plain": 1}, modules=MODULES, rank=20, scale=0.5)
    install_synthetic(opened, WIDE, DIGEST, {"int4": 2}, modules=EVERYWHERE, rank=40, scale=0.5, few_bits=few_bits)
    opened.install("gains", *_with_gains())
    opened.install("own", *_with_its_own())
    return base, store


def _with_gains() -> tuple[Manifest, dict[str, np.ndarray]]:
    manifest = synthetic_manifest(WIDE, DIGEST, ("q_proj", "down_proj"), rank=3)
    modules = {name: size.model_copy(update={"vector": "gain"}) for name, size in manifest.modules.items()}
    manifest = manifest.model_copy(update={"modules": modules})
    rng = np.random.default_rng(4)
    vectors = {
        f"{name}.vector": rng.normal(0, 0.3, manifest.tensor_shapes[f"{name}.vector"]).astype(np.float32)
        for name in modules
    }
    return manifest, synthetic_tensors(WIDE, tuple(modules), 3, seed=3, scale=0.5) | vectors


def _with_its_own() -> tuple[Manifest, dict[str, np.ndarray]]:
    """An embedding and a head."""
    size = module_shapes(WIDE)["lm_head"]
    saved = dict.fromkeys(SAVEABLE, SavedModule(rows=size.d_out, width=size.d_in))
    manifest = Manifest(base_digest=DIGEST, dtype="float32", modules={}, saved=saved)
    rng = np.random.default_rng(5)
    shape = (1, 1, size.d_out, size.d_in)
    return manifest, {f"{name}.saved": rng.normal(0, 0.2, shape).astype(np.float32) for name in saved}


def answered(paths: Paths, backend: BackendName) -> tuple[list[Generation], list[list[float]]]:
    """All of `BATCH` in one batch, generated; and all but the ensemble scored."""
    prompts, params, targets = (list(column) for column in zip(*BATCH, strict=True))
    with LLM(*paths, config=CONFIG.using(backend)) as llm:
        scored = llm.score(prompts[:-1], [LONG[:9]] * (len(BATCH) - 1), targets[:-1])
        return llm.generate(prompts, params, targets), [list(each.logprobs) for each in scored]


@pytest.fixture(scope="module")
def expected(paths: Paths) -> tuple[list[Generation], list[list[float]]]:
    return answered(paths, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["interpret", "cuda"])
def test_the_kernels_answer_as_the_cpu_does(
    paths: Paths,
    expected: tuple[list[Generation], list[list[float]]],
    structure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every kind of adapter in one batch; by themselves, and in steps as a GPU has them."""
    if structure == "cuda":
        monkeypatch.setattr("openlora_jax.llm.resolve", lambda *_: structured_as_cuda())
    answers, scores = answered(paths, "interpret")
    compared = sum(assert_same(found, wanted) for found, wanted in zip(answers, expected[0], strict=True))
    assert compared >= 0.9 * SHORT.max_tokens * len(BATCH)
    for found, wanted in zip(scores, expected[1], strict=True):
        np.testing.assert_allclose(found, wanted, atol=BOUND)


@pytest.mark.slow
def test_every_row_is_another_answer(expected: tuple[list[Generation], list[list[float]]]) -> None:
    """Or what the kernels add would not be seen above."""
    assert len(set(tokens(expected[0]))) == len(BATCH)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Paths:
    """SmolLM2-135M-Instruct and the demo's adapters."""
    store = tmp_path_factory.mktemp("demo") / "store"
    opened = AdapterStore.create(store)
    for folder in (Path(openlora_jax.demo.__file__).parent / "adapters").iterdir():
        conversion = convert_adapter(folder, BaseManifest.read(smollm2))
        opened.install(folder.name, conversion.manifest, conversion.tensors)
    return smollm2, store


@pytest.mark.slow
@pytest.mark.real_model
def test_the_demo_is_answered_as_on_the_cpu(demo: Paths) -> None:
    def answers(backend: BackendName) -> list[Generation]:
        with LLM(*demo, config=EngineConfig.load("interpret").using(backend)) as llm:
            return llm.generate([each.messages for each in DEMO], GREEDY, [each.adapters or None for each in DEMO])

    pairs = zip(answers("interpret"), answers("cpu"), strict=True)
    assert sum(assert_same(found, wanted) for found, wanted in pairs) >= 0.9 * GREEDY.max_tokens * len(DEMO)
