from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from convert.base.hf_config import read_hf_config
from convert.base.source import SafetensorsSource
from convert.base.weights import convert_weights
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.stored import weight_bytes
from tests.convert.base.checkpoints import CONFIG, Arrays, hf_tensors, write_hf


def convert(folder: Path, tensors: Arrays, dtype: Dtype = "float32", **changes: Any) -> dict[str, NDArray[Any]]:
    write_hf(folder, {**CONFIG, **changes}, tensors)
    with closing(SafetensorsSource(folder)) as source:
        return dict(convert_weights(source, read_hf_config(folder), dtype, lambda *_: None))


def tensors_of(folder: Path, **changes: Any) -> Arrays:
    return hf_tensors(read_hf_config(write_hf(folder, {**CONFIG, **changes}, None)))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((47, 32), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    with pytest.raises(BadCheckpoint) as caught:
        convert(tmp_path, tensors)
    assert sorted(caught.value.problems) == [
        "tensor model.layers.0.self_attn.q_proj.bias is unknown to family llama",
        "tensor model.layers.1.mlp.up_proj.weight: shape [47, 32], the configuration asks for [48, 32]",
        "tensor model.layers.2.mlp.up_proj.weight is unknown to family llama",
        "tensor model.norm.weight is missing",
    ]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path)
    write_hf(tmp_path, CONFIG, tensors, shards=2)
    first, second = (tmp_path / f"model-0000{index}-of-00002.safetensors" for index in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(BadCheckpoint, match=r"'model.embed_tokens.weight' is in \S+ and again in \S+"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    tensors = tensors_of(tmp_path)
    for name in ("model.layers.0.self_attn.v_proj.weight", "model.embed_tokens.weight"):
        tensors[name][3, 4] = value
    with pytest.raises(BadCheckpoint) as caught:
        convert(tmp_path, tensors)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "tensor model.embed_tokens.weight in model.safetensors",
        "tensor model.layers.0.self_attn.v_proj.weight in model.safetensors",
    ]


def test_a_value_that_bfloat16_rounds_to_infinity_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path)
    tensors["lm_head.weight"][0, 0] = np.finfo(np.float32).max
    assert np.isfinite(convert(tmp_path, tensors)["head.weight"]).all()
    with pytest.raises(
        BadCheckpoint, match=r"lm_head.weight in model.safetensors: holds NaN or an infinity as bfloat16"
    ):
        convert(tmp_path, tensors, "bfloat16")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: Any) -> None:
    halves = {name: tensor.astype(dtype) for name, tensor in tensors_of(tmp_path).items()}
    values = convert(tmp_path, halves)
    np.testing.assert_array_equal(values["embed.weight"], halves["model.embed_tokens.weight"].astype(np.float32))
    assert values["embed.weight"].dtype == np.float32


def test_rotary_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path)
    expected = convert(tmp_path, tensors)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert convert(tmp_path, tensors).keys() == expected.keys()


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path, tie_word_embeddings=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert "head.weight" not in convert(tmp_path, tensors, tie_word_embeddings=True)
    tensors["lm_head.weight"][7, 7] += 1
    with pytest.raises(BadCheckpoint, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        convert(tmp_path, tensors, tie_word_embeddings=True)


def test_weight_bytes_is_the_size_of_the_result(tmp_path: Path) -> None:
    values = convert(tmp_path, tensors_of(tmp_path), "bfloat16")
    assert weight_bytes(read_hf_config(tmp_path), "bfloat16") == sum(value.nbytes for value in values.values())


def test_blocks_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_of(tmp_path)
    whole = convert(tmp_path, tensors)
    monkeypatch.setattr("convert.base.source.BLOCK_ELEMENTS", 100)
    cut = convert(tmp_path, tensors)
    for name, value in whole.items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)
