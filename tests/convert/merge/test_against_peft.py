"""Every method against peft's `add_weighted_adapter`, tensor by tensor; decomposed ones by their deltas.

Where the last singular value that is kept is within 1e-4 of the first that is not, peft's own deltas are off by more
than the bound, since it decomposes in float32. The seeds are such that none is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pytest

from convert.adapter import Conversion, convert_adapter
from convert.base import convert_base
from convert.merge import Merged, Wish, merge, recipe_of
from convert.merge.masks import Masks
from convert.merge.sources import Source
from openlora_jax.adapters.factors import layer_factors
from openlora_jax.adapters.recipe import MajoritySign, Method
from tests.parity.cases import BASES, AdapterCase

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tests.parity.make_goldens.adapters import make_adapter
from tests.parity.make_goldens.bases import make_base
from tests.parity.make_goldens.oracle import load_base, lora_layers

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "fraction": {"r": 8, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    "stabilised": {"r": 8, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "up_proj", "lm_head"]},
    "negative": {"r": 8, "lora_alpha": -16, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "patterned": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "o_proj", "v_proj"],
        "rank_pattern": {"o_proj": 3, "layers.0.self_attn.v_proj": 20},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 7},
    },
}
NARROW = ("plain", "stabilised")
"""Stored in bfloat16: many values of one magnitude."""
FIRST_SEED = 20
EQUAL_RANKS = {"plain": 0.7, "fraction": -0.4, "stabilised": 1.3, "negative": 0.5}
ANY_RANKS = {"plain": 0.7, "patterned": -0.6, "fraction": 1.1}


@dataclass(frozen=True)
class Bench:
    """One base with every adapter, in peft and as converted."""

    peft: PeftModel
    converted: Mapping[str, Conversion]

    def sources(self, weights: Mapping[str, float]) -> list[Source]:
        found = {name: self.converted[name] for name in weights}
        return [
            Source(name, weight, found[name].report["digest"], found[name].manifest, found[name].tensors)
            for name, weight in weights.items()
        ]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("merge")
    make_base(BASES["llama"], root / "hf", 5)
    manifest = convert_base(root / "hf", root / "base", "float32", ignore).manifest
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        stored: Literal["float32", "bfloat16"] = "bfloat16" if name in NARROW else "float32"
        make_adapter(AdapterCase(config=config, stored=stored), root / "hf", root / name, FIRST_SEED + seed)
    peft = PeftModel.from_pretrained(load_base(root / "hf"), str(root / "plain"), adapter_name="plain")
    for name in ADAPTERS:
        if name != "plain":
            peft.load_adapter(str(root / name), adapter_name=name)
    return Bench(peft, {name: convert_adapter(root / name, manifest) for name in ADAPTERS})


def by_peft(bench: Bench, weights: Mapping[str, float], method: str, **options: Any) -> dict[str, LoraLayer]:
    if "merged" in bench.peft.peft_config:
        bench.peft.delete_adapter("merged")
    bench.peft.add_weighted_adapter(list(weights), list(weights.values()), "merged", method, **options)
    layers = lora_layers(bench.peft)
    return {name: layer for name, layer in layers.items() if "merged" in layer.scaling}


def peft_factors(layer: LoraLayer, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A `[rank, d_in]` and B `[d_out, rank]`."""
    if name in layer.lora_A:
        return tuple(side[name].weight.detach().numpy() for side in (layer.lora_A, layer.lora_B))
    return tuple(side[name].detach().numpy() for side in (layer.lora_embedding_A, layer.lora_embedding_B))


def place(name: str) -> tuple[str, int]:
    parts = name.split(".")
    return parts[-1], int(parts[2]) if parts[:2] == ["model", "layers"] else 0


def ours(merged: Merged, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = layer_factors(merged.manifest, merged.tensors, *place(name))
    assert found is not None
    assert found.scale == 1
    return found.a, found.b.T


@contextmanager
def recorded_masks() -> Iterator[list[np.ndarray]]:
    """What torch draws."""
    drawn: list[np.ndarray] = []
    bernoulli = torch.bernoulli

    def record(*arguments: Any, **options: Any) -> torch.Tensor:
        mask: torch.Tensor = bernoulli(*arguments, **options)
        drawn.append(mask.numpy().astype(bool))
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bernoulli", record)
        yield drawn


def given(drawn: Sequence[np.ndarray], bench: Bench, weights: Mapping[str, float], parts: Sequence[str]) -> Masks:
    """The masks in peft's order: layer by layer, A before B, member by member."""
    masks, upcoming = {}, iter(drawn)
    for name, layer in lora_layers(bench.peft).items():
        for part in parts:
            for index, member in enumerate(weights):
                if member in layer.scaling:
                    masks[(*place(name), part, index)] = next(upcoming)
    assert next(upcoming, None) is None

    def draw(module: str, layer: int, part: str, member: int, shape: tuple[int, ...]) -> np.ndarray:
        mask = masks[module, layer, part, member]
        assert mask.shape == shape
        return mask

    return draw


CASES = [
    (method, density, sign)
    for method in get_args(Method)
    for density in ((0.3, 1.0) if method not in ("linear", "cat", "svd") else (None,))
    for sign in (("total", "frequency") if "ties" in method else (None,))
]


@pytest.mark.parametrize(("method", "density", "sign"), CASES)
def test_method(bench: Bench, method: Method, density: float | None, sign: MajoritySign | None) -> None:
    decomposes = method.endswith("svd")
    weights = ANY_RANKS if decomposes or method == "cat" else EQUAL_RANKS
    options = {"density": density} | ({"majority_sign_method": sign} if sign else {})
    with recorded_masks() as drawn:
        wanted = by_peft(bench, weights, method, **options)
    sources = bench.sources(weights)
    recipe = recipe_of(Wish(method=method, density=density, majority_sign=sign), sources)
    masks = given(drawn, bench, weights, ("delta",) if decomposes else ("A", "B")) if drawn else None
    assert largest_difference(merge(sources, recipe, "float32", ignore, masks), wanted, decomposes) <= 1e-5
    assert bool(drawn) == ("dare" in method and density != 1)
    if drawn:
        assert largest_difference(merge(sources, recipe, "float32", ignore), wanted, decomposes) >= 1e-2


def test_one_adapter_is_merged_by_linear(bench: Bench) -> None:
    weights = {"fraction": -0.4}
    sources = bench.sources(weights)
    recipe = recipe_of(Wish(method="ties", density=0.3), sources)
    assert (recipe.method, recipe.density) == ("linear", None)
    wanted = by_peft(bench, weights, "ties", density=0.3)
    assert largest_difference(merge(sources, recipe, "float32", ignore), wanted, False) <= 1e-5


def test_the_rank_of_a_decomposition(bench: Bench) -> None:
    wanted = by_peft(bench, ANY_RANKS, "ties_svd", density=0.5, svd_rank=5)
    sources = bench.sources(ANY_RANKS)
    merged = merge(sources, recipe_of(Wish(method="ties_svd", density=0.5, rank=5), sources), "float32", ignore)
    assert {size.rank for size in merged.manifest.modules.values()} == {5}
    assert largest_difference(merged, wanted, True) <= 1e-5


def ignore(stage: str, done: int, total: int) -> None:
    pass


def largest_difference(merged: Merged, wanted: Mapping[str, LoraLayer], decomposed: bool) -> float:
    """Of any value of any factor, or of any delta; peft's padding with zeros to one rank is not stored by us."""
    differences = [0.0]
    for name, layer in wanted.items():
        assert layer.scaling["merged"] == 1
        (a, b), (peft_a, peft_b) = ours(merged, name), peft_factors(layer, "merged")
        rank = len(a)
        pairs = [(b @ a, peft_b @ peft_a)] if decomposed else [(a, peft_a[:rank]), (b, peft_b[:, :rank])]
        differences += [float(np.abs(mine - theirs).max()) for mine, theirs in pairs]
        assert decomposed or not peft_a[rank:].any()
    assert len(differences) > 5
    return max(differences)
