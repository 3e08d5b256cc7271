"""PEFT checkpoints of a tiny model, as `peft` lays them out, made without it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from openlora_jax.model.checkpoint import BaseManifest
from tests.openlora_jax.tiny import MODEL

Array = np.ndarray[Any, np.dtype[Any]]
Save = Callable[..., Path]

CONFIG = replace(
    MODEL,
    vocab_size=50,
    intermediate_size=40,
    num_layers=3,
    head_dim=6,
    max_position=64,
    bos_token_id=None,
    eos_token_ids=(0,),
)
SIZES = {"q_proj": (32, 24), "v_proj": (32, 12), "o_proj": (24, 32), "down_proj": (40, 32)}
PARENTS = {"q_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn", "down_proj": "mlp"}


@pytest.fixture
def base() -> BaseManifest:
    return BaseManifest(config=CONFIG, dtype="float32", digest="b" * 64, source="tiny-llama-q4_1.gguf")


def linear(module: str, layer: int) -> str:
    return f"base_model.model.model.layers.{layer}.{PARENTS[module]}.{module}"


def lora(modules: Mapping[str, int] | tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 4) -> dict[str, Array]:
    """Random factors of every layer of `modules` (with a rank each, or all of `rank`)."""
    ranks = modules if isinstance(modules, Mapping) else dict.fromkeys(modules, rank)
    rng = np.random.default_rng(0)
    tensors = {}
    for module, r in ranks.items():
        d_in, d_out = SIZES[module]
        for layer in range(CONFIG.num_layers):
            tensors[f"{linear(module, layer)}.lora_A.weight"] = rng.standard_normal((r, d_in), np.float32)
            tensors[f"{linear(module, layer)}.lora_B.weight"] = rng.standard_normal((d_out, r), np.float32)
    return tensors


def write_checkpoint(folder: Path, tensors: Mapping[str, Array], **fields: object) -> None:
    """A directory as `peft` saves it, with further fields of the configuration."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": True,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
    }
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(tensors, r=4, ...)` writes a checkpoint and returns its directory."""

    def write(tensors: Mapping[str, Array], **fields: object) -> Path:
        write_checkpoint(tmp_path / "adapter", tensors, **fields)
        return tmp_path / "adapter"

    return write


def delta(conversion_tensors: Mapping[str, Array], module: str, layer: int) -> Array:
    """The weight delta `[d_out, d_in]` that the pages of an artifact stand for."""
    a, b = (conversion_tensors[f"{module}.{factor}"][layer].astype(np.float64) for factor in "AB")
    product: Array = np.einsum("pri,pro->oi", a, b)
    return product
