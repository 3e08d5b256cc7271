"""The driver that turns a source's tensors into the model's weights: every tensor used once, and nothing left over."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from convert.base.hf_packing import REMEDY
from convert.base.source import TensorSource
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.stored import parts, specification, weight_bytes
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.progress import Progress
from openlora_jax.quantization.format import Quantization, problem
from openlora_jax.quantization.quantize import quantize

ROTARY_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Old checkpoints hold the rotary frequencies, which follow from the configuration."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def convert_weights(
    source: TensorSource, config: ModelConfig, dtype: Dtype, progress: Progress
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every array that the model is stored as, in the order of their names; plain weights as `dtype`.

    Memory: one weight as it is stored, and one block of one tensor.

    Raises:
        BadCheckpoint: tensors that are missing, unknown, of the wrong shape, or hold NaN or an infinity, all at once.
        UnsupportedFeature: a matrix that cannot be in the model's format.
    """
    table = weight_table(config)
    _refuse(source, _table_problems(source, table, config))
    if config.tie_word_embeddings and HEAD in source.shapes:
        _refuse(source, _tie_problems(source))
    _refuse_format(source, table)
    not_finite: list[str] = []
    total, done = weight_bytes(config, dtype), 0
    for name in sorted(table):
        for part, array in parts(name, _assemble(source, table[name], dtype, not_finite)).items():
            yield part, array
            done += array.nbytes
        progress("weights", done, total)
    _refuse(source, not_finite)


def _assemble(source: TensorSource, weight: Weight, dtype: Dtype, not_finite: list[str]) -> Any:
    """Joins a weight's sources along the first dimension; names those with a NaN or an infinity in `not_finite`."""
    value = jax.tree.map(lambda array: np.empty(array.shape, array.dtype), specification(weight, dtype))
    row = 0
    for name, _ in weight.sources:
        finite = True
        for block in _blocks(source, name, weight.quantization, np.dtype(dtype)):
            arrays = jax.tree.leaves(block)
            for target, array in zip(jax.tree.leaves(value), arrays, strict=True):
                target[row : row + len(array)] = array
                finite = finite and bool(np.isfinite(array).all())
            row += len(arrays[0])
        if not finite:
            kind = weight.quantization or dtype
            not_finite.append(f"tensor {name} in {source.file_of(name).name}: holds NaN or an infinity as {kind}")
    return value


def _blocks(source: TensorSource, name: str, how: Quantization | None, dtype: np.dtype[Any]) -> Iterator[Any]:
    """A tensor's rows in the model's format: as the source stores them, if it does so, else out of its numbers."""
    if how is not None and (packed := source.packed(name, how)) is not None:
        yield from packed
        return
    for block in source.blocks(name):
        with np.errstate(over="ignore", invalid="ignore"):
            yield block.astype(dtype, copy=False) if how is None else quantize(block.astype(np.float32), how)


def _refuse_format(source: TensorSource, table: Mapping[str, Weight]) -> None:
    for name, weight in table.items():
        if weight.quantization and (reason := problem(weight.shape[1], weight.quantization)):
            raise UnsupportedFeature(source.path, f"{weight.quantization.format} of {name}: {reason}", "use int8")


def _table_problems(source: TensorSource, table: Mapping[str, Weight], config: ModelConfig) -> Iterable[str]:
    expected = {name: (rows, *weight.shape[1:]) for weight in table.values() for name, rows in weight.sources}
    ignored = {HEAD} if config.tie_word_embeddings else set()
    for name, shape in expected.items():
        if name not in source.shapes:
            yield f"tensor {name} is missing"
        elif source.shapes[name] != shape:
            yield f"tensor {name}: shape {_show(source.shapes[name])}, the configuration asks for {_show(shape)}"
    for name in sorted(source.shapes.keys() - expected.keys() - ignored):
        if _is_bias(source, name, expected):
            if any(block.any() for block in source.blocks(name)):
                yield f"tensor {name} is not zero, and family {config.family} has no bias there; {REMEDY}"
        elif not ROTARY_BUFFER.fullmatch(name):
            yield f"tensor {name[:80]} is unknown to family {config.family}"


def _is_bias(source: TensorSource, name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether it is one of those that GPTQ's tools write beside every matrix, of zeros where there was none."""
    stem, _, kind = name.rpartition(".")
    rows = expected.get(f"{stem}.weight", ())[:1]
    return source.quantization is not None and kind == "bias" and source.shapes[name] == rows


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
