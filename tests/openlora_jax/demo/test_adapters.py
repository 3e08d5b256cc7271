"""The committed demo adapters are small, sound, different from each other, and described."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from safetensors.flax import load_file

import openlora_jax.demo
from openlora_jax.demo.prompts import PROMPTS, SLIDER

DEMO = Path(openlora_jax.demo.__file__).parent
NAMES = ("json", "sql", "sentiment", "pirate")
MAX_BYTES = 2_000_000


def read_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DEMO / "adapters" / name / "adapter_config.json").read_text())
    return config


def tensors_path(name: str) -> Path:
    return DEMO / "adapters" / name / "adapter_model.safetensors"


@pytest.mark.parametrize("name", NAMES)
def test_size_is_small(name: str) -> None:
    files = (DEMO / "adapters" / name).iterdir()
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_bfloat16_finite_and_trained(name: str) -> None:
    tensors = load_file(tensors_path(name))
    assert tensors
    for key, tensor in tensors.items():
        assert tensor.dtype == jnp.bfloat16, key
        assert bool(jnp.isfinite(tensor).all()), key
        assert bool((tensor != 0).any()), key


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_what_the_config_says(name: str) -> None:
    config = read_config(name)
    ranks = {module: config["rank_pattern"].get(module, config["r"]) for module in config["target_modules"]}
    found: dict[str, int] = {}
    pairs = 0
    for key, tensor in load_file(tensors_path(name)).items():
        module, factor = key.removesuffix(".weight").split(".")[-2:]
        found[module] = tensor.shape[0] if factor == "lora_A" else tensor.shape[1]
        assert found[module] == ranks[module], key
        pairs += factor == "lora_A"
    assert found == ranks
    assert pairs == 30 * len(ranks)


def test_no_two_adapters_have_the_same_rank_and_targets() -> None:
    kinds = {name: (read_config(name)["r"], frozenset(read_config(name)["target_modules"])) for name in NAMES}
    for one, other in combinations(NAMES, 2):
        assert kinds[one] != kinds[other], (one, other)
        assert kinds[one][1] != kinds[other][1], (one, other)


def test_readme_lists_the_score_of_every_adapter() -> None:
    rows = [line.split("|") for line in (DEMO / "README.md").read_text().splitlines() if line.startswith("| `")]
    scored = {row[1].strip(" `") for row in rows if row[-2].strip().endswith("%")}
    assert scored == set(NAMES)


def test_prompts_show_the_base_every_adapter_and_a_mix() -> None:
    shown = [frozenset(prompt.adapters) for prompt in PROMPTS]
    assert frozenset() in shown
    assert all(frozenset({name}) in shown for name in NAMES)
    assert any(len(names) > 1 for names in shown)
    assert frozenset().union(*shown) == set(NAMES)


def test_the_slider_goes_from_one_adapter_to_the_other() -> None:
    assert all(prompt.messages == SLIDER[0].messages for prompt in SLIDER)
    weights = [tuple(prompt.adapters.values()) for prompt in SLIDER]
    assert weights == [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
    assert len({tuple(prompt.adapters) for prompt in SLIDER}) == 1
