"""The shipped settings load by name, and each leaves its device the room that its head says, for the model it names."""

import re
from dataclasses import replace
from importlib import resources

import pytest

from openlora_jax.bench.models import LLAMA_8B, SMOLLM2_135M
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from openlora_jax.memory import MemoryPlan
from openlora_jax.model.config import ModelConfig
from pallas_kernels.registry import PLATFORMS

LLAMA_3B = replace(
    LLAMA_8B, hidden_size=3072, intermediate_size=8192, num_layers=28, num_heads=24, tie_word_embeddings=True
)

PLANNED = 0.88
"""Of a device's memory. The rest is its driver's, the programs' own, and a step's activations."""

DEVICES = {
    "cpu": (SMOLLM2_135M, 4e9),
    "interpret": (SMOLLM2_135M, 4e9),
    "a100-80g": (LLAMA_8B, 85.1e9),
    "h100-80g": (LLAMA_8B, 84.9e9),
    "b200": (LLAMA_8B, 191.5e9),
    "l4": (LLAMA_8B, 24.1e9),
    "tpu-v5e": (LLAMA_3B, 17.2e9),
    "tpu-v6e": (LLAMA_8B, 34.4e9),
}
"""Name -> the model that it is sized for, and its device's memory in bytes."""


def shipped() -> list[str]:
    return sorted(
        file.name.removesuffix(".yaml") for file in resources.files("configs").iterdir() if ".yaml" in file.name
    )


def head(name: str) -> str:
    text = (resources.files("configs") / f"{name}.yaml").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


def planned(name: str, model: ModelConfig | None = None) -> MemoryPlan:
    config = EngineConfig.load(name)
    return MemoryPlan.of(config, model or DEVICES[name][0], budget=config.device_memory)


def test_each_is_known_here() -> None:
    assert shipped() == sorted(DEVICES)


@pytest.mark.parametrize("name", DEVICES)
def test_it_loads_by_name_for_a_backend_that_exists(name: str) -> None:
    config = EngineConfig.load(name)
    assert config.backend in PLATFORMS
    assert len(config.row_buckets) + len(config.chunk_buckets) <= 6
    assert config.prefill_tile == (16 if PLATFORMS[config.backend] == "cpu" else 64)


@pytest.mark.parametrize("name", DEVICES)
def test_it_fits_its_device(name: str) -> None:
    memory = DEVICES[name][1]
    plan = planned(name)
    plan.check(int(PLANNED * memory))
    assert plan.total > 0.85 * memory or name in ("cpu", "interpret"), "and makes use of it"


def test_a_larger_model_than_a_device_holds_is_noticed() -> None:
    with pytest.raises(InvalidConfig, match="choose a smaller base model"):
        planned("tpu-v5e", LLAMA_8B).check(int(PLANNED * DEVICES["tpu-v5e"][1]))


@pytest.mark.parametrize("name", [name for name in DEVICES if name not in ("cpu", "interpret")])
def test_the_arithmetic_of_its_head_is_right(name: str) -> None:
    memory = DEVICES[name][1]
    plan = planned(name)
    rows = {
        "weights": plan.weights,
        "KV": plan.kv,
        "pool": sum(plan.pools.values()),
        "sampler": plan.sampler,
        "activations": plan.activations,
        "in all": plan.total,
    }
    for row, size in rows.items():
        found = re.search(rf"^#\s+{row}\s+([\d.]+)\s", head(name), re.MULTILINE)
        assert found, row
        assert found[1] == f"{size / 1e9:.1f}", row
    assert f"of {PLANNED * memory / 1e9:.1f}" in head(name)
    assert EngineConfig.load(name).device_memory == pytest.approx(PLANNED * memory, abs=0.05e9)
    assert f"{plan.kv_blocks - 1} blocks of {plan.block_tokens} tokens" in head(name)
    assert f"{plan.pages['q_proj'] - 1} adapters of rank 16" in head(name)
