"""What DARE keeps, drawn from the recipe's seed: the same on every machine and with every version of numpy."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.recipe import Recipe

Part = Literal["A", "B", "delta"]
PARTS: tuple[Part, ...] = ("A", "B", "delta")

Masks = Callable[[str, int, Part, int, tuple[int, ...]], NDArray[np.bool_]]
"""Module, layer, part, the member's place in the recipe, shape as in peft -> which values are kept."""


def drawn_masks(recipe: Recipe) -> Masks:
    """Masks with a stream of their own for every tensor.

    They take the raw bits of the generator, which numpy promises not to change.
    """
    seed, threshold = recipe.seed or 0, np.uint64(min(int((recipe.density or 1.0) * 2**64), 2**64 - 1))

    def draw(module: str, layer: int, part: Part, member: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        sequence = np.random.SeedSequence([seed, MODULES.index(module), layer, PARTS.index(part), member])
        bits = np.random.PCG64(sequence).random_raw(math.prod(shape))
        kept: NDArray[np.bool_] = (np.asarray(bits, np.uint64) < threshold).reshape(shape)
        return kept

    return draw
