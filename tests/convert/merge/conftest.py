"""A store of small adapters of one tiny base, by the ranks and scales that they were trained with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.adapter import convert_adapter
from convert.merge import Merged, Weighted, Wish, merge, read_sources, recipe_of
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import Dtype
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import CONFIG, Array, lora, write_checkpoint
from tests.convert.adapter.conftest import save as save

BASE = BaseManifest(config=CONFIG, dtype="float32", digest="b" * 64, source="tiny")
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "scaled": {"r": 4, "lora_alpha": 3},
    "negative": {"r": 4, "lora_alpha": -8},
    "wide": {"r": 20, "lora_alpha": 20},
}

MergeThem = Callable[..., Merged]


def ignore(stage: str, done: int, total: int) -> None:
    pass


def random_lora(seed: int, modules: tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 4) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    shapes = {name: each.shape for name, each in lora(modules, rank).items()}
    return {name: 0.3 * generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def install(
    store: AdapterStore, folder: Path, name: str, tensors: Mapping[str, Array], base: BaseManifest = BASE, **fields: Any
) -> None:
    write_checkpoint(folder / name, tensors, **fields)
    conversion = convert_adapter(folder / name, base)
    store.install(name, conversion.manifest, conversion.tensors)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    store = AdapterStore.create(tmp_path / "store")
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        install(store, tmp_path, name, random_lora(seed, rank=fields["r"]), **fields)
    return store


@pytest.fixture
def merge_them(store: AdapterStore) -> MergeThem:
    """`merge_them({"plain": 0.5, ...}, "ties", density=0.3)`."""

    def run(weights: Mapping[str, float], method: str, dtype: Dtype = "float32", **wish: Any) -> Merged:
        sources = read_sources(store, [Weighted(*each) for each in weights.items()])
        return merge(sources, recipe_of(Wish(method=method, **wish), sources), dtype, ignore)  # type: ignore[arg-type]

    return run
