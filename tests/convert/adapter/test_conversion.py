"""Conversion keeps the maths: the delta of every layer is scale * B @ A, by PEFT's rules for rank and alpha."""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.adapter import convert_adapter
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import CONFIG, Array, Save, delta, linear, lora


def scaled(tensors: dict[str, Array], module: str, layer: int, scale: float) -> Array:
    a, b = (tensors[f"{linear(module, layer)}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
    product: Array = scale * b @ a
    return product


SCALES: list[tuple[dict[str, Any], float]] = [
    ({}, 2.0),
    ({"lora_alpha": 3}, 0.75),
    ({"lora_alpha": -8}, -2.0),
    ({"lora_alpha": 2.5}, 0.625),
    ({"use_rslora": True}, 4.0),
    ({"alpha_pattern": {"q_proj": 4}}, 1.0),
    ({"alpha_pattern": {"v_proj": 4}}, 2.0),
    ({"alpha_pattern": {"layers.1.self_attn.q_proj": 16, "q_proj": 4}}, 4.0),
    ({"alpha_pattern": {"q_proj": 4, "layers.1.self_attn.q_proj": 16}}, 1.0),
    ({"alpha_pattern": {"proj": 4}}, 2.0),
    ({"alpha_pattern": {r".*\.q_proj": 4}}, 1.0),
    ({"alpha_pattern": {r"^model\.layers\.[12]\..*": 4}}, 1.0),
    ({"alpha_pattern": {"self_attn": 4}}, 2.0),
    ({"rank_pattern": {"q_proj": 4}, "r": 9, "alpha_pattern": {"q": 3}}, 2.0),
]


@pytest.mark.parametrize(("fields", "scale"), SCALES, ids=str)
def test_the_scale_of_a_layer(save: Save, base: BaseManifest, fields: dict[str, Any], scale: float) -> None:
    tensors = lora(("q_proj",))
    found = convert_adapter(save(tensors, **fields), base)
    np.testing.assert_allclose(
        delta(found.tensors, "q_proj", 1), scaled(tensors, "q_proj", 1, scale), rtol=1e-5, atol=1e-5
    )


def test_layers_may_differ_in_rank_and_scale(save: Save, base: BaseManifest) -> None:
    tensors = lora({"q_proj": 4, "o_proj": 20})
    narrow = {
        key: tensor[:3] if "_A" in key else tensor[:, :3] for key, tensor in tensors.items() if ".1.self_attn.o" in key
    }
    tensors |= {key: np.ascontiguousarray(tensor) for key, tensor in narrow.items()}
    folder = save(
        tensors,
        rank_pattern={"layers.1.self_attn.o_proj": 3, "o_proj": 20},
        alpha_pattern={r"layers\.2\..*": -1},
        use_rslora=True,
    )
    found = convert_adapter(folder, base)
    assert found.manifest.pages == {"q_proj": 1, "o_proj": 2}
    assert found.report["modules"]["o_proj"]["ranks"] == [3, 20]
    for layer, alpha in enumerate((8, 8, -1)):
        for module, rank in (("q_proj", 4), ("o_proj", 3 if layer == 1 else 20)):
            expected = scaled(tensors, module, layer, alpha / math.sqrt(rank))
            np.testing.assert_allclose(delta(found.tensors, module, layer), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 15, 16, 17, 256])
def test_ranks_are_padded_to_pages_with_zeros(save: Save, base: BaseManifest, rank: int) -> None:
    tensors = lora(("v_proj",), rank)
    found = convert_adapter(save(tensors, r=rank), base)
    pages = -(-rank // 16)
    a, b = found.tensors["v_proj.A"], found.tensors["v_proj.B"]
    assert (a.shape, b.shape) == ((3, pages, 16, 32), (3, pages, 16, 12))
    assert not a.reshape(3, -1, 32)[:, rank:].any()
    assert not b.reshape(3, -1, 12)[:, rank:].any()
    np.testing.assert_array_equal(a.reshape(3, -1, 32)[2, :rank], tensors[f"{linear('v_proj', 2)}.lora_A.weight"])


def test_layers_without_tensors_are_zeros_and_modules_without_are_absent(save: Save, base: BaseManifest) -> None:
    tensors = {key: value for key, value in lora(("q_proj", "down_proj")).items() if ".layers.1." not in key}
    found = convert_adapter(save(tensors, layers_to_transform=[0, 2], target_modules="all-linear"), base)
    assert set(found.manifest.modules) == {"q_proj", "down_proj"}
    assert found.report["modules"]["q_proj"]["layers"] == 2
    assert not found.tensors["q_proj.A"][1].any()
    assert not found.tensors["q_proj.B"][1].any()
    assert found.tensors["q_proj.B"][2].any()


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_before_it_is_scaled(save: Save, base: BaseManifest, stored: Any) -> None:
    tensors = {key: value.astype(stored) for key, value in lora(("q_proj",)).items()}
    found = convert_adapter(save(tensors, lora_alpha=3), base)
    expected = tensors[f"{linear('q_proj', 0)}.lora_B.weight"].astype(np.float32).T * np.float32(0.75)
    np.testing.assert_array_equal(found.tensors["q_proj.B"][0, 0, :4], expected)


def test_stored_as_bfloat16(save: Save, base: BaseManifest) -> None:
    folder = save(lora())
    wide, narrow = convert_adapter(folder, base), convert_adapter(folder, base, dtype="bfloat16")
    assert narrow.manifest.nbytes * 2 == wide.manifest.nbytes
    for name, tensor in wide.tensors.items():
        np.testing.assert_array_equal(narrow.tensors[name], tensor.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga"])
def test_initialisations_that_leave_the_base_alone(save: Save, base: BaseManifest, init: bool | str) -> None:
    found = convert_adapter(save(lora(), init_lora_weights=init), base)
    assert any("lora_ga" in warning for warning in found.report["warnings"]) == (init == "lora_ga")


def embedding(rank: int = 4, module: str = "embed_tokens") -> dict[str, Array]:
    rng = np.random.default_rng(1)
    if module == "lm_head":
        return {
            "base_model.model.lm_head.lora_A.weight": rng.standard_normal((rank, 32), np.float32),
            "base_model.model.lm_head.lora_B.weight": rng.standard_normal((50, rank), np.float32),
        }
    return {
        "base_model.model.model.embed_tokens.lora_embedding_A": rng.standard_normal((rank, 50), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": rng.standard_normal((32, rank), np.float32),
    }


BASE_COPY = {"base_model.model.model.embed_tokens.base_layer.weight": np.zeros((50, 32), np.float32)}


def embedding_delta(tensors: dict[str, Array]) -> Array:
    """`[vocab, hidden]`, unscaled."""
    a, b = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{factor}"] for factor in "AB")
    product: Array = a.T.astype(np.float64) @ b.T.astype(np.float64)
    return product


def test_an_embedding_leaves_the_head_alone(save: Save, base: BaseManifest) -> None:
    tensors = embedding() | BASE_COPY
    found = convert_adapter(save(tensors, target_modules=["embed_tokens"]), base)
    assert set(found.manifest.modules) == {"embed_tokens"}
    assert found.report["tensors"]["total"] == 3
    assert found.report["tensors"]["consumed"] == 2
    assert list(found.report["tensors"]["ignored"]) == list(BASE_COPY)
    np.testing.assert_allclose(
        delta(found.tensors, "embed_tokens", 0).T, 2 * embedding_delta(tensors), rtol=1e-5, atol=1e-5
    )


def test_a_head_with_tensors_of_its_own(save: Save, base: BaseManifest) -> None:
    tensors = embedding() | embedding(module="lm_head")
    found = convert_adapter(save(tensors, alpha_pattern={"lm_head": 4}), base)
    a, b = (tensors[f"base_model.model.lm_head.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
    np.testing.assert_allclose(delta(found.tensors, "lm_head", 0), b @ a, rtol=1e-5, atol=1e-5)


def test_a_head_tied_by_ensure_weight_tying_without_tensors(save: Save, base: BaseManifest) -> None:
    """PEFT builds the head of the embedding's factors, with the head's own alpha."""
    tensors = embedding()
    found = convert_adapter(save(tensors, ensure_weight_tying=True, alpha_pattern={"lm_head": 12}), base)
    np.testing.assert_allclose(delta(found.tensors, "lm_head", 0), 3 * embedding_delta(tensors), rtol=1e-5, atol=1e-5)


def test_a_head_tied_by_ensure_weight_tying_with_tensors(save: Save, base: BaseManifest) -> None:
    tensors = embedding(rank=6)
    a, b = tensors.values()
    tensors |= {
        "base_model.model.lm_head.lora_A.weight": np.ascontiguousarray(b.T),
        "base_model.model.lm_head.lora_B.weight": np.ascontiguousarray(a.T),
    }
    fields: dict[str, Any] = {"ensure_weight_tying": True, "rank_pattern": {"embed_tokens": 6}}
    found = convert_adapter(save(tensors, **fields), base)
    np.testing.assert_allclose(delta(found.tensors, "lm_head", 0), 2 * embedding_delta(tensors), rtol=1e-5, atol=1e-5)
    tensors["base_model.model.lm_head.lora_A.weight"][0, 0] += 1
    with pytest.raises(BadCheckpoint, match=r"lm_head\.lora_A\.weight: is not the transpose of"):
        convert_adapter(save(tensors, **fields), base)


def test_ensure_weight_tying_of_an_untied_base_does_nothing(save: Save, base: BaseManifest) -> None:
    from dataclasses import replace

    untied = replace(base, config=replace(CONFIG, tie_word_embeddings=False))
    assert set(convert_adapter(save(embedding(), ensure_weight_tying=True), untied).manifest.modules) == {
        "embed_tokens"
    }


def test_training_state_is_left_out_with_the_reason(save: Save, base: BaseManifest) -> None:
    key = f"{linear('q_proj', 0)}.lora_velora_embed"
    plain = convert_adapter(save(lora()), base)
    extra = save(lora() | {key: np.zeros(4, np.float32)}, velora_config={"num_groups": 4})
    found = convert_adapter(extra, base)
    assert key in found.report["tensors"]["ignored"]
    assert found.report["digest"] == plain.report["digest"]


def test_the_report_counts_everything(save: Save, base: BaseManifest) -> None:
    tensors = lora({"q_proj": 20, "v_proj": 4})
    folder = save(tensors, rank_pattern={"q_proj": 20})
    report = convert_adapter(folder, base).report
    assert report["source"] == str(folder)
    assert report["base_digest"] == base.digest
    assert report["tensors"] == {"total": 12, "consumed": 12, "ignored": {}}
    assert report["modules"]["q_proj"].items() >= {"layers": 3, "ranks": [20], "pages": 2}.items()
    squares = [np.sum(scaled(tensors, "q_proj", layer, 8 / 20) ** 2) for layer in range(3)]
    assert report["modules"]["q_proj"]["delta_norm"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    assert report["warnings"] == []


def test_one_zero_delta_is_a_warning_and_nothing_but_zeros_an_error(save: Save, base: BaseManifest) -> None:
    tensors = lora()
    for key in tensors:
        if "v_proj" in key and "lora_B" in key:
            tensors[key][:] = 0
    assert convert_adapter(save(tensors), base).report["warnings"] == ["the delta of v_proj is zero"]
    with pytest.raises(BadCheckpoint, match="every delta is zero"):
        convert_adapter(save(tensors, lora_alpha=0), base)


@pytest.mark.parametrize(
    "name", ["someone/tiny-llama", "/home/x/Tiny-Llama", "tiny-llama", "Tiny-Llama.Q4_1.gguf", None, ""]
)
def test_the_same_base_under_another_spelling(save: Save, base: BaseManifest, name: str | None) -> None:
    folder = save(lora(), base_model_name_or_path=name)
    assert convert_adapter(folder, base, strict_base=True).report["warnings"] == []


def test_another_base_name_is_a_warning_or_refused(save: Save, base: BaseManifest) -> None:
    folder = save(lora(), base_model_name_or_path="someone/tiny-llama-instruct")
    assert "tiny-llama-instruct" in convert_adapter(folder, base).report["warnings"][0]
    with pytest.raises(BadCheckpoint, match=r"adapter_config\.json: names the base model 'tiny-llama-instruct'"):
        convert_adapter(folder, base, strict_base=True)


def test_a_pickle_is_refused_with_the_way_to_save_it(tmp_path: Path, base: BaseManifest) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UnsupportedFeature, match=r"adapter_model\.bin: a pickled checkpoint.*weights_only=True"):
        convert_adapter(tmp_path, base)
