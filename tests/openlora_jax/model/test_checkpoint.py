import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import BaseManifest, read_weights, write_weights
from openlora_jax.model.config import ModelConfig, RopeScaling
from openlora_jax.model.weights import random_weights

CONFIG = ModelConfig(
    family="llama",
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_position=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=RopeScaling(kind="linear", factor=2.0),
    tie_word_embeddings=False,
    qkv_bias=False,
    qk_norm=False,
    bos_token_id=None,
    eos_token_ids=(1, 2),
)
MANIFEST = BaseManifest(config=CONFIG, dtype="float32", digest="ab", source="tiny")


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert BaseManifest.read(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"config": None},
        {"digest": None},
        {"more": 1},
        {"dtype": "int8"},
        {"source": 5},
        {"config": {**CONFIG.to_json(), "num_layers": "2"}},
        {"config": {**CONFIG.to_json(), "num_layers": 1 << 40}},
        {"config": {**CONFIG.to_json(), "rope_scaling": {"kind": "yarn", "factor": 2.0}}},
        {"config": {**CONFIG.to_json(), "more": 1}},
    ],
    ids=str,
)
def test_another_manifest_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    MANIFEST.write(tmp_path)
    fields = {**json.loads((tmp_path / "manifest.json").read_text()), **change}
    text = json.dumps({key: value for key, value in fields.items() if value is not None})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"manifest\.json: .* convert the model again"):
        BaseManifest.read(tmp_path)


def test_weights_come_back_in_the_dtype_asked_for(tmp_path: Path) -> None:
    weights = random_weights(CONFIG, seed=0)
    write_weights(tmp_path, weights)
    restored = read_weights(tmp_path, CONFIG, "float32")
    assert restored.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(restored[name], weight)
    halved = read_weights(tmp_path, CONFIG, "bfloat16")
    np.testing.assert_array_equal(halved["embed.weight"], weights["embed.weight"].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"vocab_size": 21}, r"embed\.weight has shape \[20, 8\], the model asks for \[21, 8\]"),
        ({"num_layers": 3}, r"layers\.2\.down\.weight is missing"),
        ({"tie_word_embeddings": True}, r"head\.weight is unknown"),
    ],
)
def test_weights_of_another_model_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], problem: str
) -> None:
    write_weights(tmp_path, random_weights(CONFIG, seed=0))
    monkeypatch.setattr(ocp.Checkpointer, "restore", None)
    with pytest.raises(BadCheckpoint, match=f"convert the model again; .*{problem}"):
        read_weights(tmp_path, replace(CONFIG, **change), "float32")


def test_weights_of_another_type_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(CONFIG, seed=0)
    write_weights(tmp_path, weights | {"norm.weight": weights["norm.weight"].astype(np.float16)})
    monkeypatch.setattr(ocp.Checkpointer, "restore", None)
    with pytest.raises(BadCheckpoint, match=r"norm\.weight holds float16, not one of float32, bfloat16"):
        read_weights(tmp_path, CONFIG, "float32")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"weights: .* convert the model again"):
        read_weights(tmp_path, CONFIG, "float32")
