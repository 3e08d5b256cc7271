"""`convert merge`: adapters of a store into a new adapter, module by module and layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.merge.layer import LayerMerge, shares
from convert.merge.masks import Masks, drawn_masks
from convert.merge.methods import F32
from convert.merge.sources import Source
from openlora_jax.adapters.artifact import Tensor, artifact_digest
from openlora_jax.adapters.factors import Stack
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.modules import MODULES, ModuleShape
from openlora_jax.adapters.recipe import Recipe
from openlora_jax.config import Dtype
from openlora_jax.digest import content_digest
from openlora_jax.errors import InvalidRequest
from openlora_jax.progress import Progress


@dataclass(frozen=True, slots=True)
class Merged:
    """An adapter ready to install.

    Attributes:
        report: what was done, as JSON.
    """

    manifest: Manifest
    tensors: dict[str, Tensor]
    report: dict[str, Any]


def merge(
    sources: Sequence[Source], recipe: Recipe, dtype: Dtype, progress: Progress, masks: Masks | None = None
) -> Merged:
    """Merges adapters as a recipe says. The result has the scale 1, as in peft.

    Args:
        sources: in the order of the recipe's members.
        recipe: see `recipe_of`.
        dtype: of the tensors as stored.
        progress: hears of every layer of every module.
        masks: what DARE keeps, in the place of what the recipe's seed draws.

    Raises:
        InvalidRequest: the result is not finite, or zero everywhere.
    """
    masks = masks or drawn_masks(recipe)
    shapes = {module: size.shape for source in sources for module, size in source.manifest.modules.items()}
    stacks: dict[str, Stack] = {}
    done, total = 0, sum(shape.layers for shape in shapes.values())
    for module in sorted(shapes, key=MODULES.index):
        factors = {}
        for layer in range(shapes[module].layers):
            if found := list(shares(sources, module, layer)):
                factors[layer] = _factors(LayerMerge(recipe, masks, module, layer, found))
            progress("merging", done := done + 1, total)
        if factors:
            stacks[module] = _stacked(module, shapes[module], factors, dtype)
    if not any(a.any() and b.any() for stack in stacks.values() for a, b in zip(stack.a, stack.b, strict=True)):
        raise InvalidRequest("members", "the merge is zero everywhere; use other weights, or a larger --density")
    modules = {module: stack.size for module, stack in stacks.items()}
    manifest = Manifest(base_digest=sources[0].manifest.base_digest, dtype=dtype, modules=modules, recipe=recipe)
    tensors = {name: tensor for module, stack in stacks.items() for name, tensor in stack.tensors(module).items()}
    return Merged(manifest, tensors, _report(sources, manifest, artifact_digest(manifest, tensors)))


def _factors(layer: LayerMerge) -> tuple[F32, F32]:
    try:
        return layer.factors()
    except np.linalg.LinAlgError as error:
        raise _not_finite(layer.module, layer.layer) from error


def _stacked(module: str, shape: ModuleShape, factors: dict[int, tuple[F32, F32]], dtype: Dtype) -> Stack:
    stack = Stack(shape, max(len(a) for a, _ in factors.values()), dtype)
    for layer, (a, b) in factors.items():
        if stack.put(layer, a, b, 1.0):
            raise _not_finite(module, layer)
    return stack


def _not_finite(module: str, layer: int) -> InvalidRequest:
    return InvalidRequest("members", f"merged, layer {layer} of {module} is not finite; use smaller weights")


def _report(sources: Sequence[Source], manifest: Manifest, digest: str) -> dict[str, Any]:
    recipe = manifest.recipe.model_dump(exclude_none=True) if manifest.recipe else {}
    return {
        "digest": digest,
        "base_digest": manifest.base_digest,
        "dtype": manifest.dtype,
        "bytes": manifest.nbytes,
        "recipe": recipe,
        "recipe_digest": content_digest(recipe, {}),
        "members": {source.name: source.weight for source in sources},
        "modules": {module: {"rank": size.rank, "pages": size.pages} for module, size in manifest.modules.items()},
    }
