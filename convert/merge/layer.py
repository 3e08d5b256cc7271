"""One module of one layer: from what each member brings to the factors of the merged adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from convert.merge.masks import Masks, Part
from convert.merge.methods import F32, Combination, Mask, decomposed, decomposed_product, factor_weights
from convert.merge.sources import Source
from openlora_jax.adapters.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Share:
    """What one member brings, as peft holds it.

    Attributes:
        place: of the member in the recipe.
        a: `[rank, d_in]`.
        b: `[rank, d_out]`, without the scale.
        scale: 1 where it was not recorded, and is still in B.
    """

    place: int
    weight: float
    a: F32
    b: F32
    scale: float


def shares(sources: Sequence[Source], module: str, layer: int) -> Iterator[Share]:
    """What the members that target a layer bring to it."""
    for place, source in enumerate(sources):
        if found := source.factors(module, layer):
            scale = found.scale or 1.0
            b = found.b / np.float32(scale) if found.scale else found.b
            yield Share(place, source.weight, found.a, b, scale)


@dataclass(frozen=True, slots=True)
class LayerMerge:
    """The merge of one module of one layer; there is at least one share."""

    recipe: Recipe
    masks: Masks
    module: str
    layer: int
    shares: Sequence[Share]

    def factors(self) -> tuple[F32, F32]:
        """A `[rank, d_in]` and B `[rank, d_out]`, with scale 1.

        Raises:
            numpy.linalg.LinAlgError: values that are not finite were to be decomposed.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.recipe.method == "cat":
                return self._joined()
            if self.recipe.method == "svd":
                return decomposed_product(*self._joined(), self.recipe.rank or 1)
            if self.recipe.decomposes:
                return decomposed(self._combined_deltas(), self.recipe.rank or 1)
            return self._combined_factors()

    def _joined(self) -> tuple[F32, F32]:
        """Factors of the exact sum."""
        scaled = [share.a * np.float32(share.weight) * np.float32(share.scale) for share in self.shares]
        return np.concatenate(scaled), np.concatenate([share.b for share in self.shares])

    def _combined_deltas(self) -> F32:
        """`[d_out, d_in]`."""
        weights = [share.weight for share in self.shares]
        if self.module == "embed_tokens":
            deltas = [(share.a.T @ share.b) * np.float32(share.scale) for share in self.shares]
            return self._combined("delta", deltas, weights).T
        deltas = [(share.b.T @ share.a) * np.float32(share.scale) for share in self.shares]
        return self._combined("delta", deltas, weights)

    def _combined_factors(self) -> tuple[F32, F32]:
        weights = [factor_weights(share.weight, share.scale) for share in self.shares]
        return (
            self._combined("A", [share.a for share in self.shares], [of_a for of_a, _ in weights]),
            self._combined("B", [share.b.T for share in self.shares], [of_b for _, of_b in weights]).T,
        )

    def _combined(self, part: Part, tensors: Sequence[F32], weights: Sequence[float]) -> F32:
        """Of tensors as peft lays them out, since the order of their values matters where some are equal."""
        combination = Combination.of(self.recipe)
        masks: list[Mask] = []
        if combination.draws:
            places = [share.place for share in self.shares]
            masks = [self.masks(self.module, self.layer, part, place, tensors[0].shape) for place in places]
        return combination(tensors, weights, masks)
