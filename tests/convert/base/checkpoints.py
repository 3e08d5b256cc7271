"""Tiny base models in the formats of others, written without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import weight_table

Arrays = dict[str, NDArray[Any]]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def hf_tensors(config: ModelConfig, seed: int = 0) -> Arrays:
    """Random float32 tensors under their Hugging Face names."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal((rows, *weight.shape[1:]), np.float32)
        for weight in weight_table(config).values()
        for name, rows in weight.sources
    }


def byte_tokens() -> list[str]:
    """The 256 one-byte tokens of byte-level BPE."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_hf(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any] | None, shards: int = 1) -> Path:
    """A Hugging Face directory; `tensors` None leaves the weights out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(byte_tokens())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    if tensors is not None and shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
    elif tensors is not None:
        _write_shards(folder, dict(tensors), shards)
    return folder


def _write_shards(folder: Path, tensors: Arrays, shards: int) -> None:
    files = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


GGUF_STEMS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name == "rope_freqs":
        return "rope_freqs.weight"
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{GGUF_STEMS[part]}.weight"
    return f"{GGUF_STEMS[stem]}.weight"


def llama_cpp_rows(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """The order of rows of q and k in GGUF: each head's two halves interleaved."""
    rows = tensor.shape[0]
    head = rows // heads
    order = [h * head + half * (head // 2) + i for h in range(heads) for i in range(head // 2) for half in (0, 1)]
    assert sorted(order) == list(range(rows))
    return tensor[order]


TOKENS = [*byte_tokens(), "12", "Ġa", "ab"]
MERGES = ["1 2", "Ġ a", "a b"]
SPECIAL = ["<|start|>", "<|end|>"]


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A GGUF file of architecture llama. `overrides` replaces metadata by key, None leaves a key out."""
    vocabulary = [*TOKENS, *SPECIAL]
    vocabulary += [f"unused{index}" for index in range(config.vocab_size - len(vocabulary))]
    metadata: dict[str, Any] = {
        "llama.block_count": np.uint32(config.num_layers),
        "llama.context_length": np.uint32(config.max_position),
        "llama.embedding_length": np.uint32(config.hidden_size),
        "llama.feed_forward_length": np.uint32(config.intermediate_size),
        "llama.attention.head_count": np.uint32(config.num_heads),
        "llama.attention.head_count_kv": np.uint32(config.num_kv_heads),
        "llama.attention.key_length": np.uint32(config.head_dim),
        "llama.attention.value_length": np.uint32(config.head_dim),
        "llama.attention.layer_norm_rms_epsilon": np.float32(config.rms_norm_eps),
        "llama.rope.freq_base": np.float32(config.rope_theta),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in vocabulary],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": np.uint32(len(TOKENS)),
        "tokenizer.ggml.eos_token_id": np.uint32(len(TOKENS) + 1),
        **(overrides or {}),
    }
    writer = gguf.GGUFWriter(path, str(metadata.pop("general.architecture", "llama")))
    for key, value in metadata.items():
        _add(writer, key, value)
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    for name, tensor in tensors.items():
        kind = next((count for part, count in heads.items() if f"{part}.weight" in name), None)
        stored = llama_cpp_rows(tensor, kind) if kind else tensor
        quantised = (kinds or {}).get(name)
        if quantised is None:
            writer.add_tensor(gguf_name(name), stored)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(stored, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {
        str: "add_string",
        bool: "add_bool",
        list: "add_array",
        np.uint32: "add_uint32",
        np.float32: "add_float32",
    }
    if value is not None:
        item = value.item() if isinstance(value, np.generic) else value
        getattr(writer, adders[type(value)])(key, item)
