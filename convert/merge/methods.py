"""What peft's `add_weighted_adapter` does to tensors, in numpy. TIES is https://arxiv.org/abs/2306.01708, DARE is
https://arxiv.org/abs/2311.03099.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.merge.selection import largest
from openlora_jax.adapters.recipe import ELECTING, PRUNING, RANDOM, MajoritySign, Recipe, Rule

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

BLOCK_ELEMENTS = 1 << 22
"""Elements of a delta that are widened to float64 at once."""


@dataclass(frozen=True, slots=True)
class Combination:
    """How tensors of one shape become one.

    Attributes:
        density: the part of the values that is kept; 1 prunes nothing.
        majority_sign: how TIES elects the sign of each value.
    """

    rule: Rule
    density: float = 1.0
    majority_sign: MajoritySign = "total"

    @classmethod
    def of(cls, recipe: Recipe) -> "Combination":
        return cls(recipe.rule, recipe.density or 1.0, recipe.majority_sign or "total")

    @property
    def draws(self) -> bool:
        """Whether masks are needed."""
        return self.rule in RANDOM and self.density < 1

    def __call__(self, tensors: Sequence[F32], weights: Sequence[float], masks: Sequence[Mask] = ()) -> F32:
        """The combined tensor.

        Args:
            tensors: one a member, of one shape.
            weights: one a member.
            masks: what is kept of each tensor, if it `draws`.
        """
        pruned = np.stack([self._pruned(tensor, index, masks) for index, tensor in enumerate(tensors)])
        weighted = pruned * np.asarray(weights, np.float32).reshape(-1, *[1] * (pruned.ndim - 1))
        if self.rule not in ELECTING:
            return weighted.sum(axis=0)
        agrees = agrees_with_majority(pruned, self.majority_sign)
        count = np.maximum(agrees.sum(axis=0), 1).astype(np.float32)
        merged: F32 = (weighted * agrees).sum(axis=0) / count
        return merged

    def _pruned(self, tensor: F32, index: int, masks: Sequence[Mask]) -> F32:
        if self.draws:
            return tensor * masks[index] / np.float32(self.density)
        if self.rule in PRUNING and self.density < 1:
            count = int(self.density * tensor.size)
            return tensor * largest(np.abs(tensor).reshape(-1), count).reshape(tensor.shape)
        return tensor


def agrees_with_majority(tensors: F32, how: MajoritySign) -> Mask:
    """`[members, ...]`: where a member's sign is the elected one, which is that of the sum; of 0 it is positive."""
    signs = np.sign(tensors)
    elected = np.where((tensors if how == "total" else signs).sum(axis=0) >= 0, 1, -1)
    agrees: Mask = signs == elected.astype(np.float32)
    return agrees


def factor_weights(weight: float, scale: float) -> tuple[float, float]:
    """What A and B are multiplied with so that both take an equal share of weight and scale; A takes the sign."""
    share = math.sqrt(abs(weight * scale))
    return (share if weight * scale >= 0 else -share), share


def decomposed(delta: F32, rank: int) -> tuple[F32, F32]:
    """The factors of rank `rank`, A `[rank, d_in]` and B `[rank, d_out]`, whose B'A comes closest to a delta.

    By the eigenvectors of its smaller Gram matrix, in float64: several times faster than a singular value
    decomposition, and closer than one in float32.
    """
    if len(delta) < delta.shape[1]:
        b, a = decomposed(delta.T, rank)
        return a, b
    gram = np.zeros((delta.shape[1], delta.shape[1]))
    step = max(1, BLOCK_ELEMENTS // delta.shape[1])
    for first in range(0, len(delta), step):
        block = delta[first : first + step].astype(np.float64)
        gram += block.T @ block
    _, vectors = np.linalg.eigh(gram)
    a = vectors.T[::-1][:rank].astype(np.float32)
    return a, a @ delta.T


def decomposed_product(a: F32, b: F32, rank: int) -> tuple[F32, F32]:
    """`decomposed` of B'A, without making it, from A `[ranks, d_in]` and B `[ranks, d_out]`."""
    q_a, r_a = np.linalg.qr(a.T.astype(np.float64))
    q_b, r_b = np.linalg.qr(b.T.astype(np.float64))
    u, s, vh = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    new_a, new_b = vh[:rank] @ q_a.T, (q_b @ (u[:, :rank] * s[:rank])).T
    return new_a.astype(np.float32), new_b.astype(np.float32)
