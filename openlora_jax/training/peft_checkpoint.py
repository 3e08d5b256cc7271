"""A trained adapter as peft saves it, which `openlora convert adapter` and peft itself read."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from openlora_jax.errors import CannotInstall
from openlora_jax.staging import staged_directory
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.recipe import Recipe

FOLDERS = {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
"""Of a module in its layer; the others are the attention's."""


def check_destination(directory: Path) -> None:
    """Finds what is in the way before the training. Raises CannotInstall."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CannotInstall(directory, "it exists and is not an empty directory; choose another or remove it")


def write_peft(directory: Path, adapter: TrainedAdapter, recipe: Recipe, base_name: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, whole or not at all. Raises CannotInstall."""
    check_destination(directory)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "target_modules": list(recipe.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    try:
        with staged_directory(directory) as stage:
            (stage / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
            # Not save_file, whose file is its owner's alone.
            content = save(_tensors(adapter, recipe), metadata={"format": "pt"})
            (stage / "adapter_model.safetensors").write_bytes(content)
    except OSError as error:
        raise CannotInstall(directory, os.strerror(error.errno) if error.errno else str(error)) from error


def _tensors(adapter: TrainedAdapter, recipe: Recipe) -> dict[str, np.ndarray]:
    """Every factor under peft's name, each layer for itself, in float32."""
    tensors = {}
    for module in recipe.targets:
        a, b = (np.asarray(side, np.float32) for side in adapter.factors[module])
        for layer in range(len(a)):
            name = f"base_model.model.model.layers.{layer}.{FOLDERS.get(module, 'self_attn')}.{module}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer])
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    return tensors
