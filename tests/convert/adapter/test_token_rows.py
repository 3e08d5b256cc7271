"""Trained token rows are exchanged exactly, as so many ranks of the embedding and of a tied head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.adapter import BaseWeights, convert_adapter
from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import random_weights
from tests.convert.adapter.conftest import CONFIG, Array, Save, delta, lora

EMBED = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
HEAD = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
IDS = [7, 49, 0]
ROWS = np.random.default_rng(2).standard_normal((3, 32), np.float32)
TIED, UNTIED = (replace(CONFIG, tie_word_embeddings=tied) for tied in (True, False))


def base_of(config: ModelConfig, path: Path) -> tuple[BaseManifest, dict[str, Array]]:
    weights = random_weights(config, seed=3, deviation=0.3)
    write_weights(path, weights)
    return BaseManifest(config=config, dtype="float32", digest="b" * 64, source="tiny"), weights


@pytest.mark.parametrize(("config", "modules"), [(TIED, ["embed_tokens", "lm_head"]), (UNTIED, ["embed_tokens"])])
def test_rows_of_the_embedding_are_those_of_a_tied_head(
    save: Save, tmp_path: Path, config: ModelConfig, modules: list[str]
) -> None:
    manifest, weights = base_of(config, tmp_path / "base")
    folder = save(lora() | {EMBED: ROWS}, trainable_token_indices=IDS)
    found = convert_adapter(folder, manifest, weights=BaseWeights(tmp_path / "base", manifest))
    assert list(found.manifest.modules) == ["q_proj", "v_proj", *modules]
    assert found.report["tensors"]["consumed"] == found.report["tensors"]["total"]
    expected = weights["embed.weight"].copy()
    expected[IDS] = ROWS
    for module in modules:
        change = delta(found.tensors, module, 0)
        new = weights["embed.weight"] + (change.T if module == "embed_tokens" else change)
        np.testing.assert_allclose(new, expected, atol=1e-6)
        assert found.report["modules"][module].items() >= {"token_rows": 3, "ranks": [3]}.items()


def test_a_head_may_have_rows_of_its_own(save: Save, tmp_path: Path) -> None:
    manifest, weights = base_of(UNTIED, tmp_path / "base")
    folder = save(lora() | {HEAD: ROWS[:2]}, trainable_token_indices={"lm_head": [3, 1]})
    found = convert_adapter(folder, manifest, weights=BaseWeights(tmp_path / "base", manifest))
    new = weights["head.weight"] + delta(found.tensors, "lm_head", 0)
    np.testing.assert_allclose(new[[3, 1]], ROWS[:2], atol=1e-6)
    np.testing.assert_array_equal(np.delete(new, [3, 1], 0), np.delete(weights["head.weight"], [3, 1], 0))


def test_rows_need_the_weights_of_the_base(save: Save, base: BaseManifest) -> None:
    with pytest.raises(InvalidRequest, match="token rows are deltas of the weights of the base"):
        convert_adapter(save(lora() | {EMBED: ROWS}, trainable_token_indices=IDS), base)


@pytest.mark.parametrize(
    ("indices", "rows", "problem"),
    [
        ([7, 0], ROWS, r"is \[3, 32\] where trainable_token_indices and this base have \[2, 32\]"),
        (IDS, ROWS[:, :8], r"is \[3, 8\] where .* \[3, 32\]"),
        ([7, 0, 7], ROWS, "token 7 of embed_tokens is named twice"),
        ([7, 0, 50], ROWS, "50 is outside the vocabulary, 0..49"),
        ([7, 0, -1], ROWS, "-1 is outside the vocabulary"),
        ({"lm_head": IDS}, ROWS, r"is \[3, 32\] where .* \[0, 32\]"),
        (IDS, None, "there is no tensor with the rows"),
        (None, ROWS, "trained token rows without trainable_token_indices"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit(save: Save, tmp_path: Path, indices: Any, rows: Array | None, problem: str) -> None:
    manifest, _ = base_of(TIED, tmp_path / "base")
    tensors = lora() | ({} if rows is None else {EMBED: np.ascontiguousarray(rows)})
    folder = save(tensors, trainable_token_indices=indices)
    with pytest.raises((BadCheckpoint, UnsupportedFeature), match=problem):
        convert_adapter(folder, manifest, weights=BaseWeights(tmp_path / "base", manifest))


def test_rows_of_a_module_with_lora(save: Save, base: BaseManifest) -> None:
    factors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 50), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((32, 4), np.float32),
    }
    with pytest.raises(BadCheckpoint, match="embed_tokens has trained rows, and LoRA too"):
        convert_adapter(save(factors | {EMBED: ROWS}, trainable_token_indices=IDS), base)
