"""What is asked for, and what is refused: each refusal names the input and the way out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.merge import Weighted, Wish, read_sources, recipe_of
from convert.merge.sources import Source
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.errors import InvalidRequest, UnknownAdapter
from tests.convert.adapter.conftest import CONFIG
from tests.convert.merge.conftest import BASE, install, random_lora


def sources(store: AdapterStore, **weights: float) -> list[Source]:
    return read_sources(store, [Weighted(*each) for each in weights.items()])


def test_what_a_method_needs_is_filled_in(store: AdapterStore) -> None:
    found = sources(store, plain=1.0, scaled=-0.5)
    recipe = recipe_of(Wish(method="dare_ties_svd", density=0.3), found)
    assert (recipe.seed, recipe.rank, recipe.majority_sign) == (0, 4, "total")
    assert [(member.digest, member.weight) for member in recipe.members] == [
        (store.resolve("plain"), 1.0),
        (store.resolve("scaled"), -0.5),
    ]
    assert recipe_of(Wish(method="linear"), found).model_dump(exclude_none=True).keys() == {"method", "members"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "ties"}, "--density: ties needs the part of the values to keep"),
    ({"method": "ties", "density": 0.0}, "--density: 0.0 must be above 0 and at most 1"),
    ({"method": "ties", "density": 1.01}, "--density: 1.01 must be"),
    ({"method": "ties", "density": float("nan")}, "--density: nan must be"),
    ({"method": "linear", "density": 0.5}, "--density: has no part in linear; leave it out"),
    ({"method": "ties", "density": 0.5, "seed": 1}, "--seed: has no part in ties"),
    ({"method": "dare_ties", "density": 0.5, "seed": -1}, "--seed: -1 must be"),
    ({"method": "dare_ties", "density": 0.5, "seed": 1 << 64}, "--seed: "),
    ({"method": "cat", "rank": 4}, "--rank: has no part in cat"),
    ({"method": "svd", "rank": 0}, "--rank: 0 must be from 1 to 256"),
    ({"method": "svd", "rank": 257}, "--rank: 257 must be"),
    ({"method": "magnitude_prune", "density": 0.5, "majority_sign": "total"}, "--majority-sign: has no part in"),
]


@pytest.mark.parametrize(("wish", "reason"), REFUSED, ids=str)
def test_a_value_that_cannot_be(store: AdapterStore, wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match="^" + reason.replace("(", r"\(")):
        recipe_of(Wish(**wish), sources(store, plain=1.0, scaled=1.0))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_different_ranks_where_factors_are_combined(store: AdapterStore, method: str) -> None:
    density = None if method == "linear" else 0.5
    found = sources(store, plain=1.0, wide=1.0)
    with pytest.raises(InvalidRequest, match=f"{method} needs equal ranks, and 'plain' has 4 where 'wide' has 20; use"):
        recipe_of(Wish(method=method, density=density), found)  # type: ignore[arg-type]
    assert recipe_of(Wish(method="svd"), found).rank == 20


def test_different_ranks_of_one_layer(store: AdapterStore, tmp_path: Path) -> None:
    tensors = random_lora(9)
    for name in [name for name in tensors if "layers.1.self_attn.v_proj" in name]:
        tensors[name] = np.ascontiguousarray(tensors[name][:3] if "lora_A" in name else tensors[name][:, :3])
    install(store, tmp_path, "uneven", tensors, rank_pattern={"layers.1.self_attn.v_proj": 3})
    with pytest.raises(InvalidRequest, match="'plain' has 4 where 'uneven' has 3 in layer 1 of v_proj"):
        recipe_of(Wish(method="linear"), sources(store, plain=1.0, uneven=1.0))


def test_cat_beyond_the_largest_rank(store: AdapterStore, tmp_path: Path) -> None:
    install(store, tmp_path, "huge", random_lora(9, rank=250), r=250)
    with pytest.raises(InvalidRequest, match="cat would make rank 270, more than the limit of 256; use svd with"):
        recipe_of(Wish(method="cat"), sources(store, huge=1.0, wide=1.0))


def test_scales_that_are_lost(store: AdapterStore, tmp_path: Path) -> None:
    install(store, tmp_path, "muted", random_lora(9), alpha_pattern={"layers.2.self_attn.q_proj": 0})
    with pytest.raises(InvalidRequest, match="'muted' has the scale 0 in layer 2 of q_proj; use cat"):
        recipe_of(Wish(method="ties", density=0.5), sources(store, plain=1.0, muted=1.0))
    install_synthetic(store, CONFIG, BASE.digest, {"older": 1}, rank=4)
    with pytest.raises(InvalidRequest, match="'older' was converted by a version that kept no scales; convert it"):
        recipe_of(Wish(method="ties", density=0.5), sources(store, plain=1.0, older=1.0))
    for name in ("muted", "older"):
        assert recipe_of(Wish(method="cat"), sources(store, plain=1.0, **{name: 1.0})).method == "cat"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "members: none is named"),
        ([("plain", 1.0), ("scaled", float("inf"))], "the weight of 'scaled' is inf; it must be a finite number"),
        ([("plain", float("nan"))], "the weight of 'plain' is nan"),
        ([("plain", 1.0), ("plain", 0.5)], "'plain' is named twice; name it once, with its weights added up"),
        ([("plain", 1.0), ("alias", 0.5)], "'alias' is the same adapter as 'plain'"),
        ([("plain", 1.0), ("foreign", 0.5)], "'foreign' was converted for base cccc.*, and 'plain' for bbbb.*; merge"),
    ],
)
def test_members_that_cannot_be_merged(
    store: AdapterStore, tmp_path: Path, members: list[tuple[str, float]], reason: str
) -> None:
    store.register({"alias": store.resolve("plain")})
    install(store, tmp_path, "foreign", random_lora(9), replace(BASE, digest="c" * 64))
    with pytest.raises(InvalidRequest, match=reason):
        read_sources(store, [Weighted(*each) for each in members])


def test_members_of_another_base_or_of_no_name(store: AdapterStore) -> None:
    with pytest.raises(InvalidRequest, match=r"'plain' was converted for base bbbb.*, and this one is dddd"):
        read_sources(store, [Weighted("plain", 1.0)], "d" * 64)
    with pytest.raises(UnknownAdapter, match="'nobody'"):
        read_sources(store, [Weighted("plain", 1.0), Weighted("nobody", 1.0)])


def test_what_is_no_delta_of_weights(store: AdapterStore, tmp_path: Path) -> None:
    biases = {key.replace(".weight", ".bias"): each[:, 0] for key, each in random_lora(7).items() if "lora_B" in key}
    tensors = random_lora(7) | {key: np.ascontiguousarray(each) for key, each in biases.items()}
    install(store, tmp_path, "biased", tensors, lora_bias=True)
    install(store, tmp_path, "invoked", random_lora(8), alora_invocation_tokens=[1])
    for name, what in (("biased", "lora_bias"), ("invoked", "aLoRA")):
        with pytest.raises(InvalidRequest, match=f"'{name}' is {what}.*: it is no delta of weights"):
            sources(store, plain=1.0, **{name: 1.0})
