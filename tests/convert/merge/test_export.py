"""What is written for peft is converted back into the same adapter."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.adapter import BaseWeights, convert_adapter
from convert.merge import export_adapter
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.errors import CannotInstall, InvalidRequest, UnsupportedFeature
from openlora_jax.model.checkpoint import write_weights
from openlora_jax.model.weights import random_weights
from tests.convert.adapter.conftest import CONFIG, SIZES, Array, Save, linear, lora
from tests.convert.merge.conftest import BASE, MergeThem

CASES: dict[str, dict[str, Any]] = {
    "scaled": {"lora_alpha": 3},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.o_proj": 3, "o_proj": 20},
        "alpha_pattern": {r"layers\.2\..*": -1},
        "use_rslora": True,
    },
    "layers": {"layers_to_transform": [0, 2]},
}


@pytest.mark.parametrize("name", CASES)
def test_it_comes_back_with_its_numbers(save: Save, tmp_path: Path, name: str) -> None:
    tensors = lora({"q_proj": 4, "o_proj": 20 if name == "patterns" else 4})
    if name == "patterns":
        for key in [key for key in tensors if ".1.self_attn.o" in key]:
            tensors[key] = np.ascontiguousarray(tensors[key][:3] if "_A" in key else tensors[key][:, :3])
    if name == "layers":
        tensors = {key: each for key, each in tensors.items() if ".layers.1." not in key}
    first = convert_adapter(save(tensors, **CASES[name]), BASE)
    export_adapter(first.manifest, first.tensors, tmp_path / "out")
    second = convert_adapter(tmp_path / "out", BASE)
    assert second.report["warnings"] == []
    assert second.tensors.keys() == first.tensors.keys()
    for key, tensor in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[key], tensor)
    for module, size in second.manifest.modules.items():
        before = first.manifest.modules[module].origin
        assert before
        assert size.origin
        assert size.origin.ranks == before.ranks
        assert size.origin.scales == [float(rank > 0) for rank in before.ranks]


def test_an_adapter_of_scale_1_comes_back_with_its_digest(save: Save, tmp_path: Path) -> None:
    first = convert_adapter(save(lora(), lora_alpha=4), BASE)
    export_adapter(first.manifest, first.tensors, tmp_path / "out")
    assert convert_adapter(tmp_path / "out", BASE).report["digest"] == first.report["digest"]


def test_biases_and_invocation_tokens_come_back(save: Save, tmp_path: Path) -> None:
    tensors = lora() | biases()
    first = convert_adapter(save(tensors, lora_alpha=4, lora_bias=True, alora_invocation_tokens=[3, 1]), BASE)
    export_adapter(first.manifest, first.tensors, tmp_path / "out")
    assert convert_adapter(tmp_path / "out", BASE).report["digest"] == first.report["digest"]


def biases() -> dict[str, Array]:
    rng = np.random.default_rng(4)
    return {
        f"{linear(module, layer)}.lora_B.bias": rng.standard_normal(SIZES[module][1], np.float32)
        for module in ("q_proj", "v_proj")
        for layer in range(CONFIG.num_layers)
    }


@pytest.mark.parametrize("modules", [("lm_head",), ("embed_tokens", "lm_head")])
def test_saved_modules_come_back(save: Save, tmp_path: Path, modules: tuple[str, ...]) -> None:
    keys = {"embed_tokens": "base_model.model.model.embed_tokens.weight", "lm_head": "base_model.model.lm_head.weight"}
    rng = np.random.default_rng(6)
    saved = {keys[module]: rng.standard_normal((50, 32), np.float32) for module in modules}
    first = convert_adapter(save(lora() | saved, lora_alpha=4, modules_to_save=list(modules)), BASE)
    export_adapter(first.manifest, first.tensors, tmp_path / "out")
    assert convert_adapter(tmp_path / "out", BASE).report["digest"] == first.report["digest"]
    alone = convert_adapter(save(saved, modules_to_save=list(modules)), BASE)
    with pytest.raises(UnsupportedFeature, match=f"{modules[0]}.*: exporting saved modules without LoRA"):
        export_adapter(alone.manifest, alone.tensors, tmp_path / "alone")


def test_a_gain_asks_for_the_weights_of_its_base(save: Save, tmp_path: Path) -> None:
    first = convert_adapter(save(lora() | biases(), lora_alpha=4, lora_bias=True), BASE)
    modules = {name: size.model_copy(update={"vector": "gain"}) for name, size in first.manifest.modules.items()}
    manifest = first.manifest.model_copy(update={"modules": modules})
    other = BaseWeights(tmp_path, replace(BASE, digest="0" * 64))
    for weights in (None, other):
        with pytest.raises(InvalidRequest, match=f"the weights of base {BASE.digest[:12]}.* give its directory"):
            export_adapter(manifest, first.tensors, tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_magnitudes_come_back(save: Save, tmp_path: Path) -> None:
    write_weights(tmp_path / "base", random_weights(CONFIG, seed=1))
    weights, rng = BaseWeights(tmp_path / "base", BASE), np.random.default_rng(2)
    tensors = lora(("v_proj",))
    for layer in range(CONFIG.num_layers):
        magnitude = rng.uniform(0.5, 2, SIZES["v_proj"][1]).astype(np.float32)
        magnitude[layer] = 0
        tensors[f"{linear('v_proj', layer)}.lora_magnitude_vector"] = magnitude
    first = convert_adapter(save(tensors, use_dora=True), BASE, weights=weights)
    export_adapter(first.manifest, first.tensors, tmp_path / "out", weights)
    second = convert_adapter(tmp_path / "out", BASE, weights=weights)
    assert second.tensors.keys() == first.tensors.keys()
    for key, tensor in first.tensors.items():
        np.testing.assert_allclose(second.tensors[key], tensor, rtol=1e-5, atol=1e-6)


def test_the_configuration(save: Save, tmp_path: Path) -> None:
    tensors = lora({"q_proj": 4, "v_proj": 20})
    tensors = {key: each for key, each in tensors.items() if ".layers.1.self_attn.v" not in key}
    first = convert_adapter(save(tensors, rank_pattern={"v_proj": 20}), BASE)
    report = export_adapter(first.manifest, first.tensors, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (20, 20)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"q_proj": 4}
    assert config["target_modules"] == ["q_proj", *(f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 2))]
    assert report == {"destination": str(tmp_path / "out"), "tensors": 10, "r": 20, "modules": ["q_proj", "v_proj"]}


def test_embedding_and_head(save: Save, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": generator.standard_normal((4, 50), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": generator.standard_normal((32, 4), np.float32),
        "base_model.model.lm_head.lora_A.weight": generator.standard_normal((4, 32), np.float32),
        "base_model.model.lm_head.lora_B.weight": generator.standard_normal((50, 4), np.float32),
    }
    first = convert_adapter(save(tensors, lora_alpha=4), BASE)
    export_adapter(first.manifest, first.tensors, tmp_path / "out")
    assert convert_adapter(tmp_path / "out", BASE).report["digest"] == first.report["digest"]


def test_what_was_merged_and_what_kept_no_ranks(store: AdapterStore, merge_them: MergeThem, tmp_path: Path) -> None:
    merged = merge_them({"plain": 0.5, "wide": -1.0}, "cat")
    install_synthetic(store, CONFIG, BASE.digest, {"older": 1}, rank=18)
    for name, (manifest, tensors) in {
        "merged": (merged.manifest, merged.tensors),
        "older": store.read(store.resolve("older")),
    }.items():
        export_adapter(manifest, tensors, tmp_path / name / "out")
        back = convert_adapter(tmp_path / name / "out", BASE)
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(back.tensors[key], tensor)


def test_a_destination_in_use_is_refused(save: Save, tmp_path: Path) -> None:
    first = convert_adapter(save(lora()), BASE)
    with pytest.raises(CannotInstall, match="not an empty directory"):
        export_adapter(first.manifest, first.tensors, tmp_path)
