import numpy as np
import pytest

from convert.merge.masks import Part, drawn_masks
from openlora_jax.adapters.recipe import Member, Recipe


def recipe(seed: int, density: float) -> Recipe:
    members = [Member(digest="a" * 64, weight=1.0)]
    return Recipe(method="dare_linear", members=members, density=density, seed=seed)


def test_masks_are_the_same_for_ever() -> None:
    """Merged adapters are made again from their recipes: these values may not change."""
    drawn = drawn_masks(recipe(7, 0.5))("q_proj", 0, "A", 0, (2, 8)).astype(int)
    assert drawn.tolist() == [[0, 1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.5, 0.99, np.nextafter(1, 0)])
def test_the_density_is_what_is_kept(density: float) -> None:
    kept = drawn_masks(recipe(1, float(density)))("q_proj", 0, "A", 0, (400, 500)).mean()
    assert kept == pytest.approx(density, abs=5 * (density * (1 - density) / 200_000) ** 0.5)


def test_every_tensor_has_masks_of_its_own() -> None:
    masks, shape = drawn_masks(recipe(0, 0.5)), (8, 8)
    places: list[tuple[str, int, Part, int]] = [
        ("q_proj", 0, "A", 0),
        ("k_proj", 0, "A", 0),
        ("q_proj", 1, "A", 0),
        ("q_proj", 0, "B", 0),
        ("q_proj", 0, "A", 1),
    ]
    drawn = [masks(*place, shape) for place in places]
    drawn.append(drawn_masks(recipe(1, 0.5))(*places[0], shape))
    assert len({mask.tobytes() for mask in drawn}) == len(drawn)
    np.testing.assert_array_equal(masks(*places[0], shape), drawn[0])
