import json
from pathlib import Path
from typing import Any

import pytest

from convert.base.hf_config import read_hf_config
from openlora_jax.errors import BadCheckpoint, OpenLoraError, UnsupportedFeature
from openlora_jax.model.config import ModelConfig, RopeScaling
from tests.convert.base.checkpoints import CONFIG

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3_SCALING = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
)


def read(folder: Path, **changes: Any) -> ModelConfig:
    """The test configuration with changes; None drops a key."""
    fields = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    return read_hf_config(folder)


def test_a_plain_llama(tmp_path: Path) -> None:
    assert read(tmp_path) == ModelConfig(
        family="llama",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        qkv_bias=False,
        qk_norm=False,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


FACTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama 1 has one key head a query head": ({"num_key_value_heads": None}, {"num_kv_heads": 4}),
    "head_dim of its own": ({"head_dim": 20}, {"head_dim": 20}),
    "theta of transformers 4": ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
    "theta of transformers 5": (
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_scaling": None},
    ),
    "no theta": ({"rope_theta": None}, {"rope_theta": 10000.0}),
    "linear, as it was first written": (
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
    ),
    "llama 3.1 of transformers 4": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_scaling": LLAMA3_SCALING},
    ),
    "llama 3.1 of transformers 5": (
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING},
    ),
    "mistral's window is its context": ({"model_type": "mistral", "sliding_window": 64}, {"max_position": 64}),
    "a wide window": ({"model_type": "mistral", "sliding_window": 4096}, {"max_position": 128}),
    "qwen's window is off": (
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64},
        {"max_position": 128, "qkv_bias": True},
    ),
    "qwen's window is on": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64},
        {"max_position": 64},
    ),
    "qwen's layers see all": (
        {"model_type": "qwen2", "sliding_window": 64, "layer_types": ["full_attention"] * 2},
        {"max_position": 128},
    ),
    "qwen3 norms its heads": (
        {"model_type": "qwen3", "head_dim": 16},
        {"family": "qwen3", "qk_norm": True, "qkv_bias": False, "head_dim": 16},
    ),
    "several ends": ({"eos_token_id": [2, 5, 2]}, {"eos_token_ids": (2, 5)}),
    "no end and no start": ({"eos_token_id": None, "bos_token_id": None}, {"eos_token_ids": (), "bos_token_id": None}),
    "keys without consequence": ({"use_cache": True, "anything": {"at": "all"}}, {}),
}


@pytest.mark.parametrize("case", FACTS)
def test_facts(tmp_path: Path, case: str) -> None:
    changes, expected = FACTS[case]
    config = read(tmp_path, **changes)
    assert {key: getattr(config, key) for key in expected} == expected


def test_the_generation_config_names_the_ends(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 7], "temperature": 0.6}')
    assert read(tmp_path).eos_token_ids == (4, 7)
    (tmp_path / "generation_config.json").write_text("{}")
    assert read(tmp_path).eos_token_ids == (2,)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another family": ({"model_type": "gpt2"}, "model_type 'gpt2' .* llama, mistral, qwen2, qwen3"),
    "no family": ({"model_type": None}, "model_type 'None'"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32}}, "rope type 'yarn'"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
    "an unknown part of rope": ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1}}, "'mscale'"),
    "rope by layer type": ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "'full_attention'"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "partial rotary of transformers 5": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "attention bias": ({"attention_bias": True}, "attention_bias"),
    "qwen3 with bias": ({"model_type": "qwen3", "head_dim": 8, "attention_bias": True}, "attention_bias"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "another attention": ({"layer_types": ["linear_attention"]}, "layer type 'linear_attention'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_features_are_named(tmp_path: Path, case: str) -> None:
    changes, match = REFUSED[case]
    with pytest.raises(UnsupportedFeature, match=match):
        read(tmp_path, **changes)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"hidden_size": None, "vocab_size": None}, "vocab_size: Field required; hidden_size: Field required"),
    "a string": ({"hidden_size": "32"}, "hidden_size: .*integer"),
    "a bool": ({"num_attention_heads": True}, "num_attention_heads: .*integer"),
    "zero": ({"num_hidden_layers": 0}, "num_hidden_layers: .*greater"),
    "a bomb": ({"vocab_size": 1 << 60}, "vocab_size: .*less"),
    "heads that do not divide the width": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "32 .* 5"),
    "heads that do not divide": ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 attention heads .* 3"),
    "an odd head": ({"head_dim": 7}, "head_dim 7"),
    "an end outside": ({"eos_token_id": 300}, "token id 300 .* 300"),
    "a negative start": ({"bos_token_id": -1}, "bos_token_id"),
    "qwen3 without head_dim": ({"model_type": "qwen3"}, "head_dim: Field required"),
    "mistral without key heads": ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads"),
    "llama 3 without a band": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 needs low_freq"),
    "a band upside down": ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "below"),
    "two ropes": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        "contradict",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_named(tmp_path: Path, case: str) -> None:
    changes, match = BAD[case]
    with pytest.raises(BadCheckpoint, match=match) as caught:
        read(tmp_path, **changes)
    assert "config.json" in str(caught.value)


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": float("nan")}))
    with pytest.raises(OpenLoraError, match="NaN is not a finite number"):
        read_hf_config(tmp_path)
