"""A copy of a base weight in a checkpoint must be that of the base at hand."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.adapter import BaseWeights, Conversion, convert_adapter
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.weights import random_weights
from tests.convert.adapter.conftest import CONFIG, Array, Save, lora

KEY = "base_model.model.model.embed_tokens.base_layer.weight"
WEIGHT = random_weights(CONFIG, seed=3, deviation=0.3)["embed.weight"]
NOISE = np.random.default_rng(1).standard_normal(WEIGHT.shape, np.float32)


def convert(save: Save, path: Path, copy: Array, source: str = "tiny") -> Conversion:
    write_weights(path, random_weights(CONFIG, seed=3, deviation=0.3))
    manifest = BaseManifest(config=CONFIG, dtype="float32", digest="b" * 64, source=source)
    return convert_adapter(save(lora() | {KEY: copy}), manifest, weights=BaseWeights(path, manifest))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_equal_one_is_left_out(save: Save, tmp_path: Path, dtype: Any) -> None:
    found = convert(save, tmp_path / "base", WEIGHT.astype(dtype))
    assert found.report["tensors"]["ignored"] == {KEY: "a copy of the base's own weight, equal to it"}
    assert found.report["warnings"] == []


ONE_ROW = np.where(np.arange(50)[:, None] == 9, NOISE, WEIGHT)
FINE_TUNED = WEIGHT + np.float32(0.02) * NOISE
NAN = np.where(np.arange(50)[:, None] == 9, np.float32(np.nan), WEIGHT)


@pytest.mark.parametrize("copy", [ONE_ROW, FINE_TUNED, NAN, np.zeros_like(WEIGHT)])
def test_another_one_is_refused(save: Save, tmp_path: Path, copy: Array) -> None:
    with pytest.raises(BadCheckpoint, match=r"differs from this base's by .* peft would load it over the base's"):
        convert(save, tmp_path / "base", copy)


def test_of_a_base_that_was_quantised_it_may_be_the_one_before(save: Save, tmp_path: Path) -> None:
    found = convert(save, tmp_path / "base", FINE_TUNED, "tiny.Q4_1.gguf")
    assert found.report["tensors"]["ignored"] == {KEY: "a copy of the base's own weight before it was quantised"}
    assert "of a row's length, as this base was quantised" in found.report["warnings"][0]
    with pytest.raises(BadCheckpoint, match="peft would load it"):
        convert(save, tmp_path / "other", ONE_ROW, "tiny.Q4_1.gguf")


@pytest.mark.parametrize("source", ["tiny.f16.gguf", "tiny-BF16.gguf", "tiny.gguf", "tiny.Q4_1"])
def test_a_gguf_file_need_not_be_quantised(save: Save, tmp_path: Path, source: str) -> None:
    with pytest.raises(BadCheckpoint, match="peft would load it"):
        convert(save, tmp_path / "base", FINE_TUNED, source)


def test_without_the_weights_it_is_not_compared(save: Save, base: BaseManifest) -> None:
    found = convert_adapter(save(lora() | {KEY: ONE_ROW}), base)
    assert found.report["tensors"]["ignored"] == {KEY: "a copy of the base's own weight; not compared with it"}
