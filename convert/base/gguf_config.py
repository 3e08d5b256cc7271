"""The metadata of a GGUF file of architecture `llama` as a `ModelConfig`; keys that are not understood are refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convert.base.gguf_file import GgufFile
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.config import Layers, ModelConfig, Positive, RopeScaling, Size

LLAMA3_SCALINGS = tuple(
    RopeScaling(kind="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
    for factor in (8.0, 32.0)
)
"""Llama 3.1 and 3.2. A GGUF file holds only the factors that result from them, so they are recognised by these."""


class LlamaKeys(BaseModel):
    """The `llama.*` keys, by their names without the prefix."""

    model_config = ConfigDict(extra="forbid", strict=True)

    block_count: Layers
    context_length: Size
    embedding_length: Size
    feed_forward_length: Size
    vocab_size: Size | None = None
    head_count: Size = Field(alias="attention.head_count")
    head_count_kv: Size | None = Field(None, alias="attention.head_count_kv")
    key_length: Size | None = Field(None, alias="attention.key_length")
    value_length: Size | None = Field(None, alias="attention.value_length")
    rms_norm_eps: Positive = Field(alias="attention.layer_norm_rms_epsilon")
    sliding_window: int | None = Field(None, alias="attention.sliding_window")
    rope_dimensions: Size | None = Field(None, alias="rope.dimension_count")
    rope_theta: Positive = Field(10000.0, alias="rope.freq_base")
    scaling_type: str = Field("none", alias="rope.scaling.type")
    scaling_factor: Positive | None = Field(None, alias="rope.scaling.factor")
    linear_scale: Positive | None = Field(None, alias="rope.scale_linear")
    scaling_original: Size | None = Field(None, alias="rope.scaling.original_context_length")
    scaling_finetuned: bool | None = Field(None, alias="rope.scaling.finetuned")
    expert_count: int = 0
    expert_used_count: int = 0


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """The architecture that the metadata describes. The head is tied where the file has no `output.weight`.

    Raises:
        BadCheckpoint: keys missing, of the wrong type, or in contradiction with each other.
        UnsupportedFeature: another architecture, or a feature that the model here does not have.
    """
    _check_container(file)
    keys = _llama_keys(file)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise BadCheckpoint(file.path, "has no tokenizer.ggml.tokens")
    vocab_size = keys.vocab_size or len(tokens)
    heads, head_dim = keys.head_count, _head_dim(file.path, keys)
    kv_heads = keys.head_count_kv or heads
    if heads % kv_heads:
        raise BadCheckpoint(file.path, f"{heads} attention heads are not a multiple of {kv_heads} key/value heads")
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=keys.embedding_length,
        intermediate_size=keys.feed_forward_length,
        num_layers=keys.block_count,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=min(keys.context_length, keys.sliding_window or keys.context_length),
        rms_norm_eps=_shortest(keys.rms_norm_eps),
        rope_theta=_shortest(keys.rope_theta),
        rope_scaling=_rope_scaling(file, keys, head_dim),
        tie_word_embeddings="output.weight" not in file.tensors,
        qkv_bias=False,
        qk_norm=False,
        bos_token_id=_token_id(file, "bos", vocab_size),
        eos_token_ids=tuple(
            dict.fromkeys(
                token for key in ("eos", "eot", "eom") if (token := _token_id(file, key, vocab_size)) is not None
            )
        ),
    )


def _check_container(file: GgufFile) -> None:
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedFeature(
            file.path,
            f"GGUF architecture {str(architecture)[:60]!r}",
            "only llama is read from GGUF; convert other models from their Hugging Face directory",
        )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedFeature(file.path, "a split GGUF file", "join the parts with `llama-gguf-split --merge`")


def _llama_keys(file: GgufFile) -> LlamaKeys:
    prefix = "llama."
    fields = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    try:
        keys = LlamaKeys.model_validate(fields)
    except ValidationError as error:
        problems = [f"{prefix}{item['loc'][0]}: {item['msg']}" for item in error.errors()]
        raise BadCheckpoint(file.path, *problems) from error
    if keys.expert_count:
        raise UnsupportedFeature(file.path, "a mixture of experts", "use a dense model")
    return keys


def _head_dim(path: Path, keys: LlamaKeys) -> int:
    head_dim = keys.key_length or keys.embedding_length // keys.head_count
    if not keys.key_length and keys.embedding_length % keys.head_count:
        raise BadCheckpoint(path, f"width {keys.embedding_length} is not a multiple of {keys.head_count} heads")
    if head_dim % 2:
        raise BadCheckpoint(path, f"head size {head_dim} is odd")
    if (keys.value_length or head_dim) != head_dim:
        raise UnsupportedFeature(path, "a value size that differs from the key size", "use another model")
    if (keys.rope_dimensions or head_dim) != head_dim:
        raise UnsupportedFeature(path, "rotary embedding of a part of each head", "use another model")
    return head_dim


def _rope_scaling(file: GgufFile, keys: LlamaKeys, head_dim: int) -> RopeScaling | None:
    factor = keys.scaling_factor or keys.linear_scale
    if keys.scaling_type == "linear" or (keys.scaling_type == "none" and keys.linear_scale):
        if factor is None:
            raise BadCheckpoint(file.path, "llama.rope.scaling.type is linear without a llama.rope.scaling.factor")
        return RopeScaling(kind="linear", factor=factor)
    if keys.scaling_type != "none":
        remedy = "the supported ones are none, linear and that of Llama 3"
        raise UnsupportedFeature(file.path, f"rope scaling {keys.scaling_type[:60]!r}", remedy)
    if "rope_freqs.weight" not in file.tensors:
        return None
    stored = np.concatenate(list(file.blocks("rope_freqs.weight", head_dim))).reshape(-1)
    return _recognised_scaling(file.path, stored, keys.rope_theta, head_dim)


def _recognised_scaling(path: Path, stored: NDArray[Any], theta: float, head_dim: int) -> RopeScaling | None:
    if stored.shape == (head_dim // 2,):
        if (stored == 1).all():
            return None
        for scaling in LLAMA3_SCALINGS:
            if np.allclose(stored, _llama3_factors(scaling, theta, head_dim), rtol=1e-5):
                return scaling
    raise UnsupportedFeature(
        path, "rope_freqs.weight of an unknown scaling", "convert the model from its Hugging Face directory"
    )


def _llama3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> NDArray[np.float64]:
    """What each rotary frequency is divided by: 1 for short waves, `factor` for long ones, a smooth band between."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / span
    smooth = np.clip(smooth, 0, 1)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / scaling.factor + smooth)
    return factors


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF stores 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _token_id(file: GgufFile, which: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{which}_token_id"
    token = file.metadata.get(key)
    if token is None:
        return None
    if type(token) is not int or not 0 <= token < vocab_size:
        raise BadCheckpoint(file.path, f"{key} {token!r} is outside the vocabulary of {vocab_size}")
    return token
