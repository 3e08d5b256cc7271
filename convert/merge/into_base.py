"""`convert merge --into-base`: a base model with weighted deltas of adapters in its weights, one weight at a time."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.merge.sources import Source
from openlora_jax.adapters.factors import F32
from openlora_jax.adapters.modules import module_name, module_shapes
from openlora_jax.digest import ContentDigest
from openlora_jax.errors import InvalidRequest
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.stored import weight_bytes
from openlora_jax.model.streaming import NewWeights, StoredWeights
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.progress import Progress
from openlora_jax.staging import new_directory

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
BLOCK_ELEMENTS = 1 << 22
"""Elements of a delta that are made at once."""
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Delta:
    """The weighted sum of all members' deltas for one weight: `left' right`, `[rows, columns]`."""

    left: F32
    right: F32

    def add_to(self, rows: F32) -> None:
        """Adds it in place, block by block."""
        step = max(1, BLOCK_ELEMENTS // rows.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(rows), step):
                rows[first : first + step] += self.left[:, first : first + step].T @ self.right


def merge_into_base(base: Path, sources: Sequence[Source], destination: Path, progress: Progress) -> dict[str, Any]:
    """Makes a base directory whose weights are W + sum of weight * delta, in the dtype of the base.

    Products and sums are float32. A tied embedding is untied where an adapter has a delta for it or the head, or one
    of its own, as these are for one of the two alone. Memory: the members, twice the largest weight, and a block.

    Args:
        base: that every member was converted for.
        sources: the members, with their weights.
        destination: the directory to make; it may exist if it is empty.
        progress: hears of every weight, in bytes.

    Returns:
        A report as JSON.

    Raises:
        InvalidRequest: a merged weight is not finite, the base is quantised, or one of several members has modules of
            its own.
        BadCheckpoint: the base is damaged.
        CannotInstall: the destination is in use, or the disk is full or not writable.
    """
    found = BaseManifest.read(base)
    if found.config.quantization is not None:
        problem = f"holds {found.config.quantization}, and sums would be rounded anew; merge into the plain base"
        raise InvalidRequest("base", f"{problem}, then quantise what comes of it")
    own = [source.name for source in sources if source.manifest.saved]
    if own and len(sources) > 1:
        raise InvalidRequest("members", f"{own[0]!r} has modules of its own; it goes into a base alone")
    stored = StoredWeights(base, found.config)
    config = _untied(found.config, sources)
    table, stored_table, modules = weight_table(config), weight_table(found.config), _modules(config)
    total, done = weight_bytes(config, found.dtype), 0
    with new_directory(destination, total) as stage:
        digest, written = ContentDigest(config.to_json()), NewWeights(stage, table, found.dtype)
        for name in sorted(table):
            value = _merged(stored.read(_stored_name(name, stored_table)), table[name], modules, sources)
            if not np.isfinite(value.astype(np.float32, copy=False)).all():
                raise InvalidRequest("members", f"{name} is not finite when merged; use smaller weights")
            digest.add(name, value)
            written.write(name, value)
            progress("merging", done := done + value.nbytes, total)
        for file in TOKENIZER_FILES:
            if (base / file).exists():
                shutil.copyfile(base / file, stage / file)
        merged = BaseManifest(config=config, dtype=found.dtype, digest=digest.hex(), source=_name(found, sources))
        merged.write(stage)
    return {
        "destination": str(destination),
        "digest": merged.digest,
        "base_digest": found.digest,
        "dtype": merged.dtype,
        "bytes": total,
        "members": {source.name: {"digest": source.digest, "weight": source.weight} for source in sources},
        "untied": config.tie_word_embeddings != found.config.tie_word_embeddings,
    }


def _untied(config: ModelConfig, sources: Sequence[Source]) -> ModelConfig:
    changed = [source.manifest.modules.keys() | (source.manifest.saved or {}).keys() for source in sources]
    wide = any({"embed_tokens", "lm_head"} & modules for modules in changed)
    return replace(config, tie_word_embeddings=False) if wide else config


def _modules(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """The module and layer behind each Hugging Face tensor that an adapter may have a delta for."""
    return {
        f"{module_name(module, layer)}.weight": (module, layer)
        for module, shape in module_shapes(config).items()
        for layer in range(shape.layers)
    }


def _stored_name(name: str, table: Mapping[str, Weight]) -> str:
    """The weight to begin with: of the same name, or the embedding for a head that was tied to it."""
    return name if name in table else next(key for key, weight in table.items() if weight.sources[0][0] == EMBEDDING)


def _merged(
    stored: NDArray[Any], weight: Weight, modules: Mapping[str, tuple[str, int]], sources: Sequence[Source]
) -> NDArray[Any]:
    """The weight with every delta for a part of it, or what an adapter has in its place; itself if there is neither."""
    value = stored
    for name, rows in weight.rows.items():
        if name in modules and (saved := sources[0].saved(modules[name][0])) is not None:
            value = saved
        if name in modules and (delta := _delta(*modules[name], sources)):
            value = stored.astype(np.float32) if value is stored else value
            delta.add_to(value[rows])
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(stored.dtype, copy=False)


def _delta(module: str, layer: int, sources: Sequence[Source]) -> Delta | None:
    found = [(source.weight, factors) for source in sources if (factors := source.factors(module, layer))]
    if not found:
        return None
    a = np.concatenate([factors.a for _, factors in found])
    with np.errstate(over="ignore"):
        b = np.concatenate([np.float32(weight) * factors.b for weight, factors in found])
    return Delta(a, b) if module == "embed_tokens" else Delta(b, a)


def _name(base: BaseManifest, sources: Sequence[Source]) -> str:
    return " + ".join([base.source, *(f"{source.weight:g} {source.name}" for source in sources)])
