"""Copies of the base's own weights, which peft saves of embedding and head where either is targeted.

peft loads such a copy over the base's weight, so an adapter whose copy is another one would answer otherwise here.
"""

import numpy as np

from convert.adapter.base_weights import BaseWeights
from convert.adapter.keys import BASE_COPIES
from openlora_jax.adapters.factors import F32
from openlora_jax.errors import BadCheckpoint
from openlora_jax.safetensors_file import SafetensorsFile

ROUNDED = 0.01
"""How far apart rows are at most, as a part of their length, that differ by the rounding of 16-bit numbers."""
QUANTISED = 0.3
"""The same by the rounding of a base to few bits."""
BLOCK_ELEMENTS = 1 << 22


def compare_copies(
    file: SafetensorsFile, ignored: dict[str, str], base: BaseWeights, quantised: bool
) -> tuple[dict[str, str], list[str]]:
    """Holds the copies among ignored tensors against the base.

    Args:
        file: the checkpoint.
        ignored: the tensors that are left out, and why.
        base: whose weights they should be.
        quantised: the base was made of a checkpoint in few bits, and the copy was not.

    Returns:
        `ignored` with what came of it, and warnings.

    Raises:
        BadCheckpoint: one differs by more than rounding explains.
    """
    reasons, warnings = dict(ignored), list[str]()
    for key in filter(BASE_COPIES.__contains__, ignored):
        distance = _distance(file, key, base.product(BASE_COPIES[key], 0))
        if distance <= ROUNDED:
            reasons[key] = "a copy of the base's own weight, equal to it"
            continue
        by = f"a row of {key} differs from this base's by {distance:.0%} of a row's length"
        if not quantised or not distance <= QUANTISED:
            raise BadCheckpoint(
                file.path,
                f"{by}: peft would load it over the base's; give the base that the adapter was trained on, or save the "
                "adapter again with save_embedding_layers=False if it is for this one",
            )
        reasons[key] = "a copy of the base's own weight before it was quantised"
        warnings.append(f"{by}, as this base was quantised")
    return reasons, warnings


def _distance(file: SafetensorsFile, key: str, weight: F32) -> float:
    """The largest of any row from its own, in lengths of a mean row; not a number where one is not."""
    length = float(np.sqrt(np.mean(np.einsum("vd,vd->v", weight, weight, dtype=np.float64)))) or 1.0
    first, largest = 0, 0.0
    for block in file.blocks(key, BLOCK_ELEMENTS):
        difference = block.astype(np.float32) - weight[first : first + len(block)]
        squared = np.einsum("vd,vd->v", difference, difference, dtype=np.float64)
        largest, first = np.maximum(largest, np.sqrt(squared.max())), first + len(block)
    return float(largest) / length
