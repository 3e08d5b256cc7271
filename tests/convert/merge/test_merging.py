"""Merged adapters: what they add up to, what they are called by, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from openlora_jax.adapters.artifact import artifact_digest
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.errors import InvalidRequest
from tests.convert.adapter.conftest import CONFIG, delta
from tests.convert.merge.conftest import BASE, MergeThem, install, random_lora

ANY = {"plain": 0.7, "scaled": -0.4, "negative": 1.5, "wide": 0.2}
PLACES = [(module, layer) for module in ("q_proj", "v_proj") for layer in range(CONFIG.num_layers)]


def summed(store: AdapterStore, weights: dict[str, float], module: str, layer: int) -> np.ndarray:
    read = {name: store.read(store.resolve(name))[1] for name in weights}
    deltas = [weight * delta(read[name], module, layer) for name, weight in weights.items()]
    total: np.ndarray = np.sum(deltas, axis=0)
    return total


@pytest.mark.parametrize(("method", "wish"), [("cat", {}), ("svd", {"rank": 32})])
def test_the_exact_sum(store: AdapterStore, merge_them: MergeThem, method: str, wish: dict[str, int]) -> None:
    merged = merge_them(ANY, method, **wish)
    for place in PLACES:
        np.testing.assert_allclose(delta(merged.tensors, *place), summed(store, ANY, *place), atol=1e-5)


def test_cat_keeps_every_rank(merge_them: MergeThem) -> None:
    assert {size.rank for size in merge_them(ANY, "cat").manifest.modules.values()} == {4 + 4 + 4 + 20}


def test_scales_decide_what_linear_makes_of_factors(merge_them: MergeThem, store: AdapterStore) -> None:
    """With equal scales the product's own terms are the sum's; the cross terms make it another adapter."""
    merged = merge_them({"plain": 0.7, "scaled": 0.4}, "linear")
    (a, b), (other_a, other_b) = (
        [store.read(store.resolve(name))[1][f"q_proj.{side}"][0, 0, :4] for side in "AB"]
        for name in ("plain", "scaled")
    )
    shares = np.sqrt(0.7), np.sqrt(0.4 * 0.75)
    np.testing.assert_allclose(merged.tensors["q_proj.A"][0, 0, :4], shares[0] * a + shares[1] * other_a, atol=1e-6)
    expected = shares[0] * b + shares[1] * other_b / 0.75
    np.testing.assert_allclose(merged.tensors["q_proj.B"][0, 0, :4], expected, atol=1e-6)


def test_an_adapter_without_scales_is_in_an_exact_sum(store: AdapterStore, merge_them: MergeThem) -> None:
    install_synthetic(store, CONFIG, BASE.digest, {"older": 1}, modules=("q_proj", "v_proj"), rank=20)
    weights = {"older": -0.5, "negative": 0.5}
    merged = merge_them(weights, "cat")
    for place in PLACES:
        np.testing.assert_allclose(delta(merged.tensors, *place), summed(store, weights, *place), atol=1e-5)


def test_modules_and_layers_of_some_members_alone(store: AdapterStore, merge_them: MergeThem, tmp_path: Path) -> None:
    tensors = {name: each for name, each in random_lora(9, ("v_proj", "o_proj")).items() if ".layers.1." not in name}
    install(store, tmp_path, "partial", tensors)
    merged = merge_them({"plain": 1.0, "partial": 0.5}, "magnitude_prune", density=1.0)
    assert set(merged.manifest.modules) == {"q_proj", "v_proj", "o_proj"}
    origin = merged.manifest.modules["o_proj"].origin
    assert origin is not None
    assert (origin.ranks, origin.scales) == ([4, 0, 4], [1.0, 0.0, 1.0])
    np.testing.assert_allclose(
        delta(merged.tensors, "v_proj", 1), summed(store, {"plain": 1.0}, "v_proj", 1), atol=1e-6
    )


def test_the_recipe_is_part_of_the_identity(store: AdapterStore, merge_them: MergeThem) -> None:
    weights = {"plain": 0.7, "scaled": -0.4}
    merged = merge_them(weights, "dare_ties", density=0.5, seed=3)
    digest = store.install("merged", merged.manifest, merged.tensors)
    manifest, _ = store.read(digest)
    assert manifest.recipe is not None
    assert manifest.recipe.model_dump(exclude_none=True) == merged.report["recipe"]
    assert manifest.recipe.seed == 3
    again, other = (merge_them(weights, "dare_ties", density=0.5, seed=seed) for seed in (3, 4))
    assert artifact_digest(again.manifest, again.tensors) == digest == merged.report["digest"]
    assert other.report["recipe_digest"] != merged.report["recipe_digest"]
    renamed = manifest.model_copy(update={"recipe": other.manifest.recipe})
    assert artifact_digest(renamed, merged.tensors) != digest


def test_a_merged_adapter_can_be_merged(store: AdapterStore, merge_them: MergeThem) -> None:
    merged = merge_them({"plain": 0.7, "scaled": -0.4}, "linear")
    store.install("merged", merged.manifest, merged.tensors)
    twice = merge_them({"merged": 4.0}, "linear")
    for place in PLACES:
        np.testing.assert_allclose(delta(twice.tensors, *place), 4 * delta(merged.tensors, *place), atol=1e-5)


def test_stored_as_bfloat16(merge_them: MergeThem) -> None:
    wide, narrow = merge_them(ANY, "svd"), merge_them(ANY, "svd", "bfloat16")
    assert narrow.manifest.nbytes * 2 == wide.manifest.nbytes
    for name, tensor in wide.tensors.items():
        np.testing.assert_array_equal(narrow.tensors[name], tensor.astype(narrow.tensors[name].dtype))


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties_svd"])
def test_a_result_that_is_not_finite(merge_them: MergeThem, method: str) -> None:
    wish = {"density": 0.5} if method == "ties_svd" else {}
    with pytest.raises(InvalidRequest, match="layer 0 of q_proj is not finite; use smaller weights"):
        merge_them({"plain": 1e300, "scaled": 1e300}, method, **wish)


@pytest.mark.parametrize(("weights", "density"), [((0.0, 0.0), 1.0), ((1.0, 1.0), 1e-9)])
def test_a_result_that_is_nothing(merge_them: MergeThem, weights: tuple[float, float], density: float) -> None:
    with pytest.raises(InvalidRequest, match="the merge is zero everywhere"):
        merge_them(dict(zip(("plain", "scaled"), weights, strict=True)), "magnitude_prune", density=density)
