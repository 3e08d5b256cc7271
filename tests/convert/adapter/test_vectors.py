"""DoRA and biases on lora_B: what the pages of an artifact stand for is what PEFT computes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.adapter import BaseWeights, convert_adapter
from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.weights import random_weights
from tests.convert.adapter.conftest import CONFIG, SIZES, Array, Save, delta, linear, lora

BIASED = replace(CONFIG, family="qwen2", qkv_bias=True, tie_word_embeddings=True)
EMBED = "base_model.model.model.embed_tokens"


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    return random_weights(BIASED, seed=3, deviation=0.3)


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Array]) -> tuple[BaseManifest, BaseWeights]:
    """A base whose q, k and v have biases, and a tied head."""
    path = tmp_path_factory.mktemp("biased")
    write_weights(path, weights)
    manifest = BaseManifest(config=BIASED, dtype="float32", digest="b" * 64, source="tiny-qwen")
    return manifest, BaseWeights(path, manifest)


def vectors(suffix: str, modules: tuple[str, ...], seed: int = 5) -> dict[str, Array]:
    """One for each layer of the modules."""
    rng = np.random.default_rng(seed)
    return {
        f"{linear(module, layer)}{suffix}": rng.uniform(0.5, 2, SIZES[module][1]).astype(np.float32)
        for module in modules
        for layer in range(CONFIG.num_layers)
    }


def changed(tensors: dict[str, Array], module: str, layer: int, y: Array) -> Array:
    """The base's output by the vector page."""
    gain, bias = tensors[f"{module}.vector"][layer, 0].astype(np.float64)
    out: Array = y + gain * y + bias
    return out


@pytest.mark.parametrize("module", ["v_proj", "down_proj"])
def test_dora_is_a_gain_on_base_and_delta(
    save: Save, weights: dict[str, Array], biased: tuple[BaseManifest, BaseWeights], module: str
) -> None:
    tensors = lora((module,)) | vectors(".lora_magnitude_vector", (module,))
    found = convert_adapter(save(tensors, use_dora=True), biased[0], weights=biased[1])
    assert found.manifest.modules[module].vector == "gain"
    assert found.report["modules"][module]["vector"] == "gain"
    width, height = SIZES[module]
    for layer in range(CONFIG.num_layers):
        if module == "v_proj":
            weight, bias = (
                weights[f"layers.{layer}.qkv.{part}"][-height:].astype(np.float64) for part in ("weight", "bias")
            )
        else:
            weight, bias = weights[f"layers.{layer}.down.weight"].astype(np.float64), np.zeros(height)
        a, b = (tensors[f"{linear(module, layer)}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        whole = weight + 2 * b @ a
        gain = tensors[f"{linear(module, layer)}.lora_magnitude_vector"] / np.linalg.norm(whole, axis=1)
        x = np.random.default_rng(layer).normal(size=width)
        got = changed(found.tensors, module, layer, weight @ x + bias) + delta(found.tensors, module, layer) @ x
        np.testing.assert_allclose(got, gain * (whole @ x) + bias, rtol=1e-4, atol=1e-4)


def test_dora_of_an_embedding_and_a_tied_head(
    save: Save, weights: dict[str, Array], biased: tuple[BaseManifest, BaseWeights]
) -> None:
    rng = np.random.default_rng(1)
    embed, head = rng.uniform(0.5, 2, 32).astype(np.float32), rng.uniform(0.5, 2, 50).astype(np.float32)
    tensors = {
        f"{EMBED}.lora_embedding_A": rng.standard_normal((4, 50), np.float32),
        f"{EMBED}.lora_embedding_B": rng.standard_normal((32, 4), np.float32),
        f"{EMBED}.lora_magnitude_vector": embed,
        "base_model.model.lm_head.lora_A.weight": rng.standard_normal((4, 32), np.float32),
        "base_model.model.lm_head.lora_B.weight": rng.standard_normal((50, 4), np.float32),
        "base_model.model.lm_head.lora_magnitude_vector": head,
    }
    found = convert_adapter(save(tensors, use_dora=True), biased[0], weights=biased[1])
    weight = weights["embed.weight"].astype(np.float64)
    for module, whole, magnitude in (("embed_tokens", weight.T, embed), ("lm_head", weight, head)):
        names = (
            ("lora_embedding_A", "lora_embedding_B") if module == "embed_tokens" else ("lora_A.weight", "lora_B.weight")
        )
        prefix = EMBED if module == "embed_tokens" else "base_model.model.lm_head"
        a, b = (tensors[f"{prefix}.{name}"].astype(np.float64) for name in names)
        gain = magnitude / np.linalg.norm(whole + 2 * b @ a, axis=1)
        np.testing.assert_allclose(found.tensors[f"{module}.vector"][0, 0, 0], gain - 1, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(delta(found.tensors, module, 0), gain[:, None] * (2 * b @ a), rtol=1e-4, atol=1e-4)


def test_a_bias_on_b_is_scaled_and_added(save: Save, base: BaseManifest) -> None:
    tensors = lora(("q_proj", "o_proj")) | vectors(".lora_B.bias", ("q_proj", "o_proj"))
    found = convert_adapter(save(tensors, lora_bias=True, alpha_pattern={"o_proj": 2}), base)
    assert found.manifest.traits.gains is False
    for module, scale in (("q_proj", 2.0), ("o_proj", 0.5)):
        gain, bias = found.tensors[f"{module}.vector"][2, 0]
        assert not gain.any()
        np.testing.assert_allclose(bias, scale * tensors[f"{linear(module, 2)}.lora_B.bias"], rtol=1e-6)


def test_a_layer_that_is_not_targeted_has_no_effect(save: Save, base: BaseManifest) -> None:
    tensors = lora(("q_proj",)) | vectors(".lora_B.bias", ("q_proj",))
    rest = {key: tensor for key, tensor in tensors.items() if ".layers.1." not in key}
    found = convert_adapter(save(rest, lora_bias=True), base)
    assert not found.tensors["q_proj.vector"][1].any()
    assert found.tensors["q_proj.vector"][2].any()


def test_invocation_tokens_are_in_the_manifest(save: Save, base: BaseManifest) -> None:
    found = convert_adapter(save(lora(), alora_invocation_tokens=[7, 3, 7]), base)
    assert found.manifest.invocation_tokens == [7, 3, 7]
    assert found.report["invocation_tokens"] == [7, 3, 7]
    assert found.report["digest"] != convert_adapter(save(lora()), base).report["digest"]


def test_dora_needs_the_weights_of_the_base(save: Save, base: BaseManifest) -> None:
    tensors = lora(("q_proj",)) | vectors(".lora_magnitude_vector", ("q_proj",))
    with pytest.raises(InvalidRequest, match="relative to the weights of the base"):
        convert_adapter(save(tensors, use_dora=True), base)


KEY = f"{linear('v_proj', 1)}.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ({KEY: None}, "v_proj.lora_A.weight: its lora_magnitude_vector is missing"),
        ({KEY: np.ones(13, np.float32)}, r"magnitude_vector: has shape \[13\] where this base has 12 output features"),
        ({KEY: np.ones((12, 1), np.float32)}, r"magnitude_vector: has shape \[12, 1\] where this base has 12"),
        ({KEY: np.full(12, np.nan, np.float32)}, "magnitude_vector: makes a gain that is not finite"),
        (
            {KEY.replace("v_proj", "o_proj"): np.ones(32, np.float32)},
            "o_proj.lora_magnitude_vector: its lora_A and lora_B",
        ),
        ({KEY.replace(".1.", ".9."): np.ones(12, np.float32)}, "layers.9.*: the base has no such module"),
    ],
    ids=str,
)
def test_magnitudes_that_do_not_fit(
    save: Save, biased: tuple[BaseManifest, BaseWeights], spoil: dict[str, Array | None], problem: str
) -> None:
    tensors = {**lora(("v_proj",)), **vectors(".lora_magnitude_vector", ("v_proj",)), **spoil}
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    with pytest.raises(BadCheckpoint, match=problem):
        convert_adapter(save(kept, use_dora=True), biased[0], weights=biased[1])


def test_a_row_of_zeros_has_no_direction(save: Save, weights: dict[str, Array], tmp_path: Path) -> None:
    weights["layers.1.qkv.weight"][-1] = 0
    write_weights(tmp_path, weights)
    manifest = BaseManifest(config=BIASED, dtype="float32", digest="b" * 64, source="tiny-qwen")
    tensors = lora(("v_proj",)) | vectors(".lora_magnitude_vector", ("v_proj",))
    tensors[f"{linear('v_proj', 1)}.lora_B.weight"][-1] = 0
    with pytest.raises(BadCheckpoint, match="a row of the weight and its delta is zero"):
        convert_adapter(save(tensors, use_dora=True), manifest, weights=BaseWeights(tmp_path, manifest))


@pytest.mark.parametrize("field", ["lora_bias", "alora_invocation_tokens"])
def test_what_an_embedding_cannot_have(save: Save, base: BaseManifest, field: str) -> None:
    rng = np.random.default_rng(1)
    tensors = {
        f"{EMBED}.lora_embedding_A": rng.standard_normal((4, 50), np.float32),
        f"{EMBED}.lora_embedding_B": rng.standard_normal((32, 4), np.float32),
    }
    with pytest.raises(UnsupportedFeature, match=f"{field} with LoRA on embed_tokens"):
        convert_adapter(save(tensors, **{field: True if field == "lora_bias" else [1]}), base)
