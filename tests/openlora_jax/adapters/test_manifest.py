from typing import Any

import pytest

from openlora_jax.adapters.manifest import LowRank, Manifest, Origin, SavedModule
from openlora_jax.adapters.modules import Saveable
from openlora_jax.adapters.recipe import Member, Recipe
from openlora_jax.adapters.traits import PLAIN, Traits

SIZE: dict[str, Any] = {"layers": 2, "d_in": 4, "d_out": 6, "rank": 3}
RECIPE = Recipe(method="ties", members=[Member(digest="a" * 64, weight=-0.5)], density=0.5, majority_sign="total")


def manifest(recipe: Recipe | None, origin: Origin | None) -> Manifest:
    modules = {"q_proj": LowRank(**SIZE, origin=origin)}
    return Manifest(base_digest="b" * 64, dtype="float32", modules=modules, recipe=recipe)


@pytest.mark.parametrize("recipe", [RECIPE, None])
@pytest.mark.parametrize("origin", [Origin(ranks=[3, 0], scales=[1.5, 0.0]), None])
def test_a_manifest_comes_back(recipe: Recipe | None, origin: Origin | None) -> None:
    found = manifest(recipe, origin)
    assert Manifest.from_fields(found.to_fields()) == found


def test_what_is_not_recorded_has_no_part_in_the_identity() -> None:
    fields = manifest(None, None).to_fields()
    assert fields.keys() == {"format", "base_digest", "dtype", "modules"}
    assert fields["modules"]["q_proj"].keys() == SIZE.keys()


@pytest.mark.parametrize(
    "origin",
    [
        {"ranks": [3], "scales": [1.0]},
        {"ranks": [3, 3], "scales": [1.0]},
        {"ranks": [2, 2], "scales": [1.0, 1.0]},
        {"ranks": [3, 4], "scales": [1.0, 1.0]},
        {"ranks": [3, -1], "scales": [1.0, 1.0]},
        {"ranks": [3, 3], "scales": [1.0, float("inf")]},
        {"ranks": [3, 3], "scales": [1.0, "1"]},
        {"ranks": [3, 3]},
    ],
    ids=str,
)
def test_an_origin_that_cannot_be(origin: dict[str, Any]) -> None:
    fields = manifest(None, None).to_fields()
    fields["modules"]["q_proj"]["origin"] = origin
    with pytest.raises(ValueError, match=r"modules\.q_proj"):
        Manifest.from_fields(fields)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "average"},
        {"members": []},
        {"members": [{"digest": "a", "weight": 1.0}]},
        {"members": [{"digest": "a" * 64, "weight": float("nan")}]},
        {"density": 0.0},
        {"density": 1.5},
        {"seed": -1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be(change: dict[str, Any]) -> None:
    fields = manifest(RECIPE, None).to_fields()
    fields["recipe"] |= change
    with pytest.raises(ValueError, match=r"^recipe\."):
        Manifest.from_fields(fields)


def test_a_vector_page_and_invocation_tokens_come_back_and_are_counted() -> None:
    modules = {"v_proj": LowRank(**SIZE), "q_proj": LowRank(**SIZE | {"rank": 17}, vector="gain")}
    found = Manifest(base_digest="b" * 64, dtype="bfloat16", modules=modules, invocation_tokens=[3, 1])
    assert Manifest.from_fields(found.to_fields()) == found
    assert list(found.pages.items()) == [("q_proj", 2), ("v_proj", 1), ("q_proj.vector", 1)]
    assert found.tensor_shapes["q_proj.vector"] == (2, 1, 2, 6)
    assert found.nbytes == 2 * 2 * (3 * 16 * (4 + 6) + 2 * 6)
    assert found.traits == Traits(invocation=(3, 1), gains=True)
    assert manifest(None, None).traits == PLAIN


def test_saved_modules_come_back_and_are_counted() -> None:
    saved: dict[Saveable, SavedModule] = dict.fromkeys(("lm_head", "embed_tokens"), SavedModule(rows=9, width=4))
    modules = {"q_proj": LowRank(**SIZE)}
    found = Manifest(base_digest="b" * 64, dtype="bfloat16", modules=modules, saved=saved)
    assert Manifest.from_fields(found.to_fields()) == found
    assert list(found.pages.items()) == [("q_proj", 1), ("embed_tokens.saved", 1), ("lm_head.saved", 1)]
    assert found.tensor_shapes["lm_head.saved"] == (1, 1, 9, 4)
    assert found.nbytes == 2 * (2 * 16 * (4 + 6) + 2 * 9 * 4)
    assert found.saved_bytes == {"lm_head": 72, "embed_tokens": 72}
    assert found.traits == Traits(saved=True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"modules": {}}, "modules and saved are both empty"),
        ({"saved": {"q_proj": {"rows": 9, "width": 4}}}, r"saved\.q_proj"),
        ({"saved": {"lm_head": {"rows": 9, "width": 0}}}, r"saved\.lm_head\.width"),
        (
            {"modules": {"lm_head": SIZE | {"layers": 1}}, "saved": {"lm_head": {"rows": 6, "width": 4}}},
            "lm_head has LoRA and is saved too",
        ),
        ({"saved": {}}, r"^saved: "),
        ({"modules": {"q_proj": SIZE | {"delta_errors": []}}}, r"modules\.q_proj\.delta_errors: "),
        (
            {"saved": {"lm_head": {"rows": 9, "width": 4}}, "invocation_tokens": [3]},
            "lm_head is saved, which acts before",
        ),
    ],
)
def test_what_an_adapter_cannot_be(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Manifest.from_fields(manifest(None, None).to_fields() | change)


@pytest.mark.parametrize("tokens", [[], [-1], ["1"], [True], list(range(1025))], ids=lambda tokens: str(tokens)[:9])
def test_invocation_tokens_that_cannot_be(tokens: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^invocation_tokens"):
        Manifest.from_fields({**manifest(None, None).to_fields(), "invocation_tokens": tokens})
