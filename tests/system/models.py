"""A random llama, converted as a user would convert his own, and adapters that make it say other things."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convert.base import convert_base
from convert.base.hf_config import read_hf_config
from openlora_jax import LLM
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.base.checkpoints import Arrays, hf_tensors, write_hf

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Every id is a byte, so that every token is text."""

SETTINGS: dict[str, Any] = {
    "max_rows": 8,
    "row_buckets": (1, 8),
    "prefill_chunk": 64,
    "chunk_buckets": (64,),
    "kv_block": 16,
    "kv_blocks": 129,
    "pool_pages": 9,
    "wide_pool_pages": 2,
}
"""Eight rows and eight adapters of one page."""


def write_source(folder: Path) -> Path:
    """The Hugging Face directory of the tiny model."""
    write_hf(folder, TINY, None)
    return write_hf(folder, TINY, _scaled(hf_tensors(read_hf_config(folder))))


def write_tiny(folder: Path) -> Path:
    """The tiny model, converted."""
    base = folder / "base"
    convert_base(write_source(folder / "source"), base, "float32", lambda stage, done, total: None)
    return base


def install(store: Path, base: Path, names: list[str], first_seed: int = 0, **settings: Any) -> dict[str, str]:
    """Adapters of rank 8 on q and v, each with random numbers from a seed of its own; their digests by name."""
    manifest = BaseManifest.read(base)
    seeds = {name: seed for seed, name in enumerate(names, first_seed)}
    settings = {"scale": 1.0, **settings}
    return install_synthetic(AdapterStore.create(store), manifest.config, manifest.digest, seeds, **settings)


@contextmanager
def tiny_llm(base: Path, store: Path, **settings: Any) -> Iterator[LLM]:
    with LLM(base, store, **{**SETTINGS, **settings}) as llm:
        yield llm


def _scaled(tensors: Arrays) -> Arrays:
    """Products that keep the size of what goes in, and logits with a spread of a few units."""
    return {name: _scale(name, tensor) for name, tensor in tensors.items()}


def _scale(name: str, tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim == 1:
        return np.ones_like(tensor)
    deviation = 1.0 if "embed" in name else tensor.shape[1] ** -0.5
    if "lm_head" in name:
        deviation *= 3
    return tensor * np.float32(deviation)
