"""Random PEFT adapters from a seed, without torch: what is too big to commit is made again, bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Shapes = Mapping[str, tuple[int, int]]
"""(d_in, d_out) of each linear module of a layer."""


def linear_shapes(*, hidden: int, q: int, kv: int, mlp: int) -> dict[str, tuple[int, int]]:
    """The seven linear modules under the parts of a layer that hold them."""
    return {
        "self_attn.q_proj": (hidden, q),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (q, hidden),
        "mlp.gate_proj": (hidden, mlp),
        "mlp.up_proj": (hidden, mlp),
        "mlp.down_proj": (mlp, hidden),
    }


def write_random_adapter(
    directory: Path, shapes: Shapes, ranks: Mapping[str, int], *, layers: int, size: float, seed: int
) -> None:
    """Writes an adapter of the given rank for each module (by last name) with lora_alpha 16.

    `size` is about the standard deviation of what it adds to a module's output for an input of deviation 1.
    The values are scaled random bytes: equal on every platform and numpy version.
    """
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module, (d_in, d_out) in shapes.items():
            rank = ranks.get(module.split(".")[-1])
            if rank is None:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = _values(generator, (rank, d_in), d_in**-0.5)
            tensors[f"{prefix}.lora_B.weight"] = _values(generator, (d_out, rank), size * rank**0.5 / 16)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(_config(ranks), indent=2) + "\n")


def _values(generator: np.random.Generator, shape: tuple[int, int], deviation: float) -> np.ndarray:
    bytes_ = generator.integers(-127, 128, shape, dtype=np.int8)
    return bytes_.astype(np.float32) * np.float32(deviation / 73.3)


def _config(ranks: Mapping[str, int]) -> dict[str, object]:
    first = next(iter(ranks.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "random",
        "bias": "none",
        "r": first,
        "lora_alpha": 16,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != first},
        "target_modules": sorted(ranks),
    }
