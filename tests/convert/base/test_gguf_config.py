from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.base.gguf_config import LLAMA3_SCALINGS, read_gguf_config
from convert.base.gguf_file import GgufFile
from convert.base.hf_config import read_hf_config
from openlora_jax.errors import BadCheckpoint, OpenLoraError, UnsupportedFeature
from openlora_jax.model.config import ModelConfig, RopeScaling
from tests.convert.base.checkpoints import CONFIG, hf_tensors, write_gguf, write_hf

U32, F32 = np.uint32, np.float32


def original(folder: Path, **changes: Any) -> ModelConfig:
    fields = {**CONFIG, "vocab_size": 320, "bos_token_id": 259, "eos_token_id": 260, **changes}
    return read_hf_config(write_hf(folder, fields, None))


def read(folder: Path, overrides: dict[str, Any], rope_freqs: Any = None, **changes: Any) -> ModelConfig:
    config = original(folder, **changes)
    tensors = hf_tensors(config)
    if rope_freqs is not None:
        tensors["rope_freqs"] = np.asarray(rope_freqs, F32)
    with closing(GgufFile(write_gguf(folder / "x.gguf", config, tensors, overrides))) as file:
        return read_gguf_config(file)


def test_the_config_is_that_of_the_hugging_face_directory(tmp_path: Path) -> None:
    assert read(tmp_path, {}) == original(tmp_path)
    assert read(tmp_path, {}, tie_word_embeddings=True) == original(tmp_path, tie_word_embeddings=True)


FACTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one key head a query head": ({"llama.attention.head_count_kv": None}, {"num_kv_heads": 4}),
    "head size of the width": (
        {"llama.attention.key_length": None, "llama.attention.value_length": None},
        {"head_dim": 8},
    ),
    "head size of its own": (
        {"llama.attention.key_length": U32(16), "llama.attention.value_length": U32(16)},
        {"head_dim": 16},
    ),
    "vocabulary of the key": ({"llama.vocab_size": U32(330)}, {"vocab_size": 330}),
    "window": ({"llama.attention.sliding_window": U32(64)}, {"max_position": 64}),
    "no theta": ({"llama.rope.freq_base": None}, {"rope_theta": 10000.0}),
    "linear": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": F32(4)},
        {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
    ),
    "several ends": ({"tokenizer.ggml.eot_token_id": U32(7)}, {"eos_token_ids": (260, 7)}),
    "no end": ({"tokenizer.ggml.eos_token_id": None}, {"eos_token_ids": ()}),
}


@pytest.mark.parametrize("case", FACTS)
def test_facts(tmp_path: Path, case: str) -> None:
    overrides, expected = FACTS[case]
    config = read(tmp_path, overrides)
    assert {key: getattr(config, key) for key in expected} == expected


def llama3_factors(factor: float, theta: float, head_dim: int) -> list[float]:
    """As llama.cpp's converter writes them, a frequency at a time."""
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (index / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


@pytest.mark.parametrize("scaling", LLAMA3_SCALINGS, ids=["3.1", "3.2"])
def test_the_scaling_of_llama_3_is_recognised(tmp_path: Path, scaling: RopeScaling) -> None:
    factors = llama3_factors(scaling.factor, 5e5, 64)
    overrides = {"llama.rope.freq_base": F32(5e5)}
    assert len({*factors} - {1.0, scaling.factor}) > 2
    assert read(tmp_path, overrides, factors, head_dim=64).rope_scaling == scaling


def test_factors_of_an_unknown_scaling_are_refused(tmp_path: Path) -> None:
    for factors in (llama3_factors(16, 1e4, 64), [2.0] * 32, [1.0] * 5):
        with pytest.raises(UnsupportedFeature, match=r"rope_freqs\.weight"):
            read(tmp_path, {}, factors, head_dim=64)
    assert read(tmp_path, {}, [1.0] * 32, head_dim=64).rope_scaling is None


BAD: dict[str, tuple[dict[str, Any], type[OpenLoraError], str]] = {
    "another architecture": ({"general.architecture": "qwen2"}, UnsupportedFeature, "architecture 'qwen2'"),
    "experts": ({"llama.expert_count": U32(8)}, UnsupportedFeature, "mixture of experts"),
    "a part of a file": ({"split.count": U32(3)}, UnsupportedFeature, "llama-gguf-split --merge"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, UnsupportedFeature, "rope scaling 'yarn'"),
    "partial rotary": ({"llama.rope.dimension_count": U32(4)}, UnsupportedFeature, "part of each head"),
    "unequal heads": ({"llama.attention.value_length": U32(4)}, UnsupportedFeature, "value size"),
    "an unknown key": ({"llama.logit_scale": F32(2)}, BadCheckpoint, "llama.logit_scale: Extra inputs"),
    "missing": ({"llama.block_count": None}, BadCheckpoint, "llama.block_count: Field required"),
    "a size of each layer": ({"llama.feed_forward_length": [1, 2]}, BadCheckpoint, "feed_forward_length: .*integer"),
    "zero": ({"llama.attention.head_count": U32(0)}, BadCheckpoint, "head_count: .*greater"),
    "heads that do not divide": ({"llama.attention.head_count_kv": U32(3)}, BadCheckpoint, "4 attention heads .* 3"),
    "an end outside": ({"tokenizer.ggml.eos_token_id": U32(320)}, BadCheckpoint, "eos_token_id 320"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, BadCheckpoint, "tokenizer.ggml.tokens"),
    "linear without a factor": ({"llama.rope.scaling.type": "linear"}, BadCheckpoint, "without"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_understood_is_refused(tmp_path: Path, case: str) -> None:
    overrides, error, match = BAD[case]
    with pytest.raises(error, match=match):
        read(tmp_path, overrides)
