"""The driver that turns a source's tensors into the model's weights: every tensor used once, and nothing left over."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from convert.base.source import TensorSource
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.progress import Progress

ROTARY_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Old checkpoints hold the rotary frequencies, which follow from the configuration."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def convert_weights(
    source: TensorSource, config: ModelConfig, dtype: Dtype, progress: Progress
) -> dict[str, NDArray[Any]]:
    """Every weight of the model by flat name, as `dtype`. Memory: the result and one block of one tensor.

    Raises:
        BadCheckpoint: tensors that are missing, unknown, of the wrong shape, or hold NaN or an infinity, all at once.
    """
    table = weight_table(config)
    _refuse(source, _table_problems(source, table, config))
    if config.tie_word_embeddings and HEAD in source.shapes:
        _refuse(source, _tie_problems(source))
    values: dict[str, NDArray[Any]] = {}
    not_finite: list[str] = []
    total, done = weight_bytes(config, dtype), 0
    for name, weight in table.items():
        values[name] = _assemble(source, weight, np.dtype(jnp.dtype(dtype)), not_finite)
        done += values[name].nbytes
        progress("weights", done, total)
    _refuse(source, not_finite)
    return values


def weight_bytes(config: ModelConfig, dtype: Dtype) -> int:
    """Bytes of all weights of a model."""
    elements = sum(math.prod(weight.shape) for weight in weight_table(config).values())
    return elements * jnp.dtype(dtype).itemsize


def _assemble(source: TensorSource, weight: Weight, dtype: np.dtype[Any], not_finite: list[str]) -> NDArray[Any]:
    """Joins a weight's sources along the first dimension; names those with a NaN or an infinity in `not_finite`."""
    value = np.empty(weight.shape, dtype)
    row = 0
    for name, _ in weight.sources:
        finite = True
        for block in source.blocks(name):
            target = value[row : row + len(block)]
            with np.errstate(over="ignore", invalid="ignore"):
                target[...] = block.astype(dtype, copy=False)
            finite = finite and bool(np.isfinite(target).all())
            row += len(block)
        if not finite:
            not_finite.append(f"tensor {name} in {source.file_of(name).name}: holds NaN or an infinity as {dtype}")
    return value


def _table_problems(source: TensorSource, table: Mapping[str, Weight], config: ModelConfig) -> Iterable[str]:
    expected = {name: (rows, *weight.shape[1:]) for weight in table.values() for name, rows in weight.sources}
    ignored = {HEAD} if config.tie_word_embeddings else set()
    for name, shape in expected.items():
        if name not in source.shapes:
            yield f"tensor {name} is missing"
        elif source.shapes[name] != shape:
            yield f"tensor {name}: shape {_show(source.shapes[name])}, the configuration asks for {_show(shape)}"
    for name in sorted(source.shapes.keys() - expected.keys() - ignored):
        if not ROTARY_BUFFER.fullmatch(name):
            yield f"tensor {name[:80]} is unknown to family {config.family}"


def _tie_problems(source: TensorSource) -> Iterable[str]:
    """A head that is stored although it is tied must be the embedding, else one of the two would be lost."""
    if source.shapes[HEAD] != source.shapes[EMBEDDING] or not all(
        np.array_equal(head, embedding)
        for head, embedding in zip(source.blocks(HEAD), source.blocks(EMBEDDING), strict=True)
    ):
        yield f"{HEAD} differs from {EMBEDDING} although tie_word_embeddings is true"


def _show(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(f"{size:,}" for size in shape) + "]"


def _refuse(source: TensorSource, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise BadCheckpoint(source.path, *found)
