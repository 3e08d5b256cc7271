"""A base model so small that its programs compile in seconds, with a real tokenizer and a store of two adapters."""

from pathlib import Path
from typing import Any

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import random_weights
from tests.openlora_jax.test_tokenizer import byte_level, write_base

DIGEST = "f" * 64
MODEL = ModelConfig(
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
    rope_theta=1e4,
    rope_scaling=None,
    tie_word_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)
SETTINGS: dict[str, Any] = {
    "max_rows": 4,
    "row_buckets": (4,),
    "prefill_chunk": 32,
    "chunk_buckets": (32,),
    "kv_block": 16,
    "kv_blocks": 65,
    "wide_pool_pages": 5,
}
"""One program of each kind; embedding and head, which no adapter of the store has, may be targeted too."""


def write_tiny_base(path: Path, model: ModelConfig = MODEL) -> Path:
    write_base(path, byte_level())
    write_weights(path, random_weights(model, seed=0, deviation=0.2))
    BaseManifest(config=model, dtype="float32", digest=DIGEST, source="random").write(path)
    return path


def write_tiny_store(path: Path) -> Path:
    install_synthetic(AdapterStore.create(path), MODEL, DIGEST, {"one": 1, "two": 2}, scale=1.0)
    return path
