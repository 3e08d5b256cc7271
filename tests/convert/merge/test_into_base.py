"""A merged base is its base plus the weighted deltas, in a directory like any other base's."""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.adapter import convert_adapter
from convert.base import convert_base
from convert.merge import Weighted, merge_into_base, read_sources
from convert.merge.sources import Source
from openlora_jax import LLM
from openlora_jax.adapters.manifest import SavedModule
from openlora_jax.adapters.modules import module_shapes
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.digest import content_digest
from openlora_jax.errors import CannotInstall, InvalidRequest
from openlora_jax.model.checkpoint import BaseManifest, read_weights, write_weights
from openlora_jax.model.streaming import NewWeights
from openlora_jax.model.weights import random_weights, weight_table
from openlora_jax.quantization.format import Quantization
from tests.convert.merge.conftest import ignore
from tests.openlora_jax.tiny import DIGEST, MODEL, write_tiny_base
from tests.parity.cases import MIXES
from tests.parity.conftest import CONFIG
from tests.parity.goldens import BOUND, MOVED, Goldens, adapter_directory, base_directory, max_difference

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS = {"narrow": 0.7, "wide": -0.4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return write_tiny_base(tmp_path / "base")


def members(tmp_path: Path, modules: Sequence[str], weights: dict[str, float] | None = None) -> list[Source]:
    store = AdapterStore.create(tmp_path / "store")
    for seed, (name, rank) in enumerate({"narrow": 4, "wide": 20}.items()):
        install_synthetic(store, MODEL, DIGEST, {name: seed}, modules=modules, rank=rank, scale=0.3)
    return read_sources(store, [Weighted(*each) for each in (weights or WEIGHTS).items()])


def test_a_quantised_base_is_refused(base: Path, tmp_path: Path) -> None:
    sources = members(tmp_path, LINEAR[:1])
    few = replace(MODEL, quantization=Quantization(format="int8", group=32))
    BaseManifest(config=few, dtype="float32", digest=DIGEST, source="random").write(base)
    with pytest.raises(InvalidRequest, match=r"base: holds int8 in groups of 32, .* merge into the plain base, then"):
        merge_into_base(base, sources, tmp_path / "merged", ignore)
    assert not (tmp_path / "merged").exists()


def delta(sources: Sequence[Source], module: str, layer: int) -> np.ndarray:
    """`[d_out, d_in]`, in float64."""
    deltas = [
        source.weight * np.einsum("pri,pro->oi", *(source.tensors[f"{module}.{side}"][layer] for side in "AB"))
        for source in sources
    ]
    total: np.ndarray = np.sum(np.asarray(deltas, np.float64), axis=0)
    return total


def weights_of(base: Path) -> dict[str, np.ndarray]:
    manifest = BaseManifest.read(base)
    read = read_weights(base, manifest.config, manifest.dtype)
    return {name: np.asarray(value) for name, value in read.items()}


def test_every_delta_is_in_its_weight(base: Path, tmp_path: Path) -> None:
    sources = members(tmp_path, LINEAR)
    report = merge_into_base(base, sources, tmp_path / "merged", ignore)
    before, after = weights_of(base), weights_of(tmp_path / "merged")
    for layer in range(MODEL.num_layers):
        joined = {"qkv": LINEAR[:3], "o": LINEAR[3:4], "gate_up": LINEAR[4:6], "down": LINEAR[6:]}
        for weight, modules in joined.items():
            name = f"layers.{layer}.{weight}.weight"
            expected = before[name] + np.concatenate([delta(sources, module, layer) for module in modules])
            np.testing.assert_allclose(after[name], expected, atol=1e-6)
            assert np.abs(after[name] - before[name]).max() > 1e-2
    for name in before.keys() - {name for name in before if "layers." in name and "norm" not in name}:
        np.testing.assert_array_equal(after[name], before[name])
    assert report["untied"] is False
    assert report["base_digest"] == DIGEST


def test_the_directory_is_a_base_like_any_other(base: Path, tmp_path: Path) -> None:
    report = merge_into_base(base, members(tmp_path, LINEAR), tmp_path / "merged", ignore)
    manifest = BaseManifest.read(tmp_path / "merged")
    assert manifest.digest == report["digest"] == content_digest(MODEL.to_json(), weights_of(tmp_path / "merged"))
    assert manifest.source == "random + 0.7 narrow + -0.4 wide"
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    again = merge_into_base(base, members(tmp_path, LINEAR), tmp_path / "again", ignore)
    assert again["digest"] == report["digest"]


@pytest.mark.parametrize("modules", [("embed_tokens",), ("lm_head", "q_proj"), ("embed_tokens", "lm_head")])
def test_a_tied_embedding_is_untied(base: Path, tmp_path: Path, modules: tuple[str, ...]) -> None:
    sources = members(tmp_path, modules)
    report = merge_into_base(base, sources, tmp_path / "merged", ignore)
    assert report["untied"] is True
    assert BaseManifest.read(tmp_path / "merged").config == replace(MODEL, tie_word_embeddings=False)
    embedding, after = weights_of(base)["embed.weight"], weights_of(tmp_path / "merged")
    for module, name in (("embed_tokens", "embed.weight"), ("lm_head", "head.weight")):
        change = delta(sources, module, 0) if module in modules else np.zeros_like(embedding)
        expected = embedding + (change.T if module == "embed_tokens" and module in modules else change)
        np.testing.assert_allclose(after[name], expected, atol=1e-6)


def headed(tmp_path: Path, **weights: float) -> list[Source]:
    """Members, of which `headed` has a head of its own."""
    members(tmp_path, ("q_proj",))
    store = AdapterStore(tmp_path / "store")
    size = SavedModule(rows=MODEL.vocab_size, width=MODEL.hidden_size)
    manifest, tensors = store.read(store.resolve("narrow"))
    head = np.random.default_rng(7).standard_normal((1, 1, size.rows, size.width), np.float32)
    with_head = manifest.model_copy(update={"saved": {"lm_head": size}})
    store.install("headed", with_head, {**tensors, "lm_head.saved": head})
    return read_sources(store, [Weighted(*each) for each in weights.items()], into_base=True)


def test_a_head_of_its_own_takes_the_place_of_a_tied_one(base: Path, tmp_path: Path) -> None:
    sources = headed(tmp_path, headed=1.0)
    report = merge_into_base(base, sources, tmp_path / "merged", ignore)
    assert report["untied"] is True
    before, after = weights_of(base), weights_of(tmp_path / "merged")
    np.testing.assert_array_equal(after["head.weight"], sources[0].tensors["lm_head.saved"][0, 0])
    np.testing.assert_array_equal(after["embed.weight"], before["embed.weight"])
    changed = after["layers.0.qkv.weight"][: MODEL.q_size] - before["layers.0.qkv.weight"][: MODEL.q_size]
    np.testing.assert_allclose(changed, delta(sources, "q_proj", 0), atol=1e-6)


@pytest.mark.parametrize("weights", [{"headed": 0.5}, {"headed": 1.0, "wide": 1.0}])
def test_a_head_of_its_own_is_in_no_sum(tmp_path: Path, weights: dict[str, float]) -> None:
    reason = r"'headed' has modules of its own .* it goes into a base \(--into-base\) alone and with the weight 1"
    with pytest.raises(InvalidRequest, match=reason):
        headed(tmp_path, **weights)
    with pytest.raises(InvalidRequest, match=reason):
        read_sources(AdapterStore(tmp_path / "store"), [Weighted("headed", 1.0)])


def test_a_head_of_its_own_goes_into_a_base_alone(base: Path, tmp_path: Path) -> None:
    sources = [*headed(tmp_path, headed=1.0), *members(tmp_path / "others", ("q_proj",))]
    with pytest.raises(InvalidRequest, match="'headed' has modules of its own"):
        merge_into_base(base, sources, tmp_path / "merged", ignore)


def test_a_bfloat16_base_is_rounded_once(base: Path, tmp_path: Path) -> None:
    narrow = {name: each.astype(ml_dtypes.bfloat16) for name, each in random_weights(MODEL, 0, deviation=0.2).items()}
    (tmp_path / "narrow").mkdir()
    write_weights(tmp_path / "narrow", narrow)
    BaseManifest(config=MODEL, dtype="bfloat16", digest=DIGEST, source="x").write(tmp_path / "narrow")
    sources = members(tmp_path, ("o_proj",))
    merge_into_base(tmp_path / "narrow", sources, tmp_path / "merged", ignore)
    after, name = weights_of(tmp_path / "merged"), "layers.1.o.weight"
    exact = narrow[name].astype(np.float64) + delta(sources, "o_proj", 1)
    assert after[name].dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(after[name].astype(np.float64), exact, rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(after["layers.1.qkv.weight"], narrow["layers.1.qkv.weight"])


@pytest.mark.parametrize("mix", ["signs", "tied"])
def test_it_scores_as_the_reference_with_the_summed_deltas(tmp_path: Path, mix: str) -> None:
    """Against committed answers of transformers and peft."""
    goldens, case = Goldens.load(), MIXES[mix]
    manifest = convert_base(base_directory(case.base), tmp_path / "base", "float32", ignore).manifest
    store = AdapterStore.create(tmp_path / "store")
    for name in case.adapters:
        converted = convert_adapter(adapter_directory(name), manifest)
        store.install(name, converted.manifest, converted.tensors)
    sources = read_sources(store, [Weighted(*each) for each in case.adapters.items()])
    merge_into_base(tmp_path / "base", sources, tmp_path / "merged", ignore)
    with LLM(tmp_path / "merged", config=CONFIG) as llm:
        scored = llm.score([row.prompt_ids for row in goldens.rows], [row.completion_ids for row in goldens.rows])
    found = [list(each.logprobs) for each in scored]
    assert max_difference(found, goldens.mixes[mix]) <= BOUND
    assert max_difference(found, goldens.bases[case.base]) >= MOVED


def test_a_result_that_is_not_finite_is_refused(base: Path, tmp_path: Path) -> None:
    sources = members(tmp_path, ("q_proj",), {"narrow": 1e300})
    with pytest.raises(InvalidRequest, match=r"layers\.0\.qkv\.weight is not finite when merged; use smaller weights"):
        merge_into_base(base, sources, tmp_path / "merged", ignore)
    assert {each.name for each in tmp_path.iterdir()} == {"base", "store"}


def test_a_full_disk_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = members(tmp_path, ("q_proj",))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(NewWeights, "write", full)
    with pytest.raises(CannotInstall, match="No space left on device"):
        merge_into_base(base, sources, tmp_path / "merged", ignore)
    assert {each.name for each in tmp_path.iterdir()} == {"base", "store"}


def test_a_destination_in_use_is_refused_before_the_work(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotInstall, match="not an empty directory"):
        merge_into_base(base, members(tmp_path, ("q_proj",)), base, ignore)


def test_progress_counts_every_byte(base: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = merge_into_base(base, members(tmp_path, ("q_proj",)), tmp_path / "merged", lambda *each: seen.append(each))
    assert len(seen) == len(weight_table(MODEL))
    assert seen[-1] == ("merging", report["bytes"], report["bytes"])


def test_every_module_has_a_place(base: Path, tmp_path: Path) -> None:
    """Each module of each layer alone changes one weight and no other."""
    before = weights_of(base)
    for module in module_shapes(MODEL):
        sources = members(tmp_path / module, (module,))
        merge_into_base(base, sources, tmp_path / module / "merged", ignore)
        after = weights_of(tmp_path / module / "merged")
        changed = {name for name in after if not np.array_equal(after[name], before.get(name, before["embed.weight"]))}
        assert len(changed) == module_shapes(MODEL)[module].layers
