"""From the header of a PEFT checkpoint to what each tensor is for. Everything is checked before anything is read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.adapter.config import AdapterConfig
from convert.adapter.keys import BASE_COPIES, Part, Target, foreign_feature, ignored_reason, parts, targets
from convert.adapter.patterns import Pattern
from convert.adapter.saved import Saved, find_saved, saved_keys, saved_problems
from convert.adapter.token_rows import TokenRows, find_rows, row_keys, row_problems
from openlora_jax.adapters.manifest import VectorKind
from openlora_jax.adapters.modules import module_shapes
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.config import ModelConfig
from openlora_jax.safetensors_file import TensorInfo

UNGATHERED = (
    "DeepSpeed ZeRO-3 or FSDP saved a shard; gather the parameters (zero.GatheredParameters, summon_full_params) "
    "and save the adapter again"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One module of one layer: its tensors, and the scale that belongs to the product of two of them.

    Attributes:
        a: the tensor `[rank, d_in]`, or `[d_in, rank]` if transposed.
        b: the tensor `[d_out, rank]`, or `[rank, d_out]` if transposed.
        magnitude: the tensor `[d_out]` of DoRA: the norms that the rows of the weight and its delta are given.
        bias: the tensor `[d_out]` that is added to the product of B, before the scale.
        transposed: a head tied to an embedding: peft makes its A of the embedding's B, and the other way round.
    """

    target: Target
    a: str
    b: str
    rank: int
    scale: float
    magnitude: str | None = None
    bias: str | None = None
    transposed: bool = False

    @property
    def vector(self) -> VectorKind | None:
        """What it has a vector page for."""
        return "gain" if self.magnitude else "bias" if self.bias else None


@dataclass(frozen=True, slots=True)
class Layers:
    """What a checkpoint holds.

    Attributes:
        layers: every one.
        ignored: the tensors that are left out, and why.
        rows: trained rows of the embedding and the head.
        saved: embedding and head in the place of the base's.
        tied: embedding and head, if `ensure_weight_tying` says that they share their tensors and both have some.
    """

    layers: list[Layer]
    ignored: dict[str, str]
    rows: list[TokenRows]
    saved: Saved
    tied: tuple[Layer, Layer] | None


def find_layers(path: Path, tensors: Mapping[str, TensorInfo], config: AdapterConfig, model: ModelConfig) -> Layers:
    """Assigns every tensor to its module and layer, and checks its shape against configuration and base.

    Raises:
        BadCheckpoint: tensors that belong to no module, lack others of it, are damaged or have the wrong shape; all
            of them at once. Or no tensor is left.
        UnsupportedFeature: a tensor of something that is not served; a pattern that cannot be matched safely.
    """
    saved = find_saved(tensors, config, model)
    by_target, ignored = _sort(path, tensors, model, config, saved)
    _refuse_embedding(path, by_target, config)
    scales = _Scales(path, config)
    embedding = next((target for target in by_target if target.module == "embed_tokens"), None)
    tied = embedding if config.ensure_weight_tying and model.tie_word_embeddings else None
    layers, problems = [], _whole_problems(ignored, saved, tensors, model)
    rows = find_rows(tensors, config, model)
    if config.trainable_token_indices and not rows:
        problems.append("trainable_token_indices: there is no tensor with the rows")
    problems += _row_problems(rows, by_target, tensors, model)
    problems += saved_problems(saved, [*(target.module for target in by_target), *(each.module for each in rows)])
    for target, found in by_target.items():
        if missing := [end for end, part in parts(target.module, config).items() if part not in found]:
            key, ends = next(iter(found.values())), " and ".join(end.removesuffix(".weight")[1:] for end in missing)
            problems.append(f"tensor {key}: its {ends} is missing")
            continue
        rank = scales.rank(tied.name if tied and target.module == "lm_head" else target.name)
        vectors = found.get("magnitude"), found.get("bias")
        layer = Layer(target, found["A"], found["B"], rank, scales.scale(target.name), *vectors)
        problems += _shape_problems(layer, tensors, model)
        layers.append(layer)
    _refuse(path, problems)
    by_module = {layer.target.module: layer for layer in layers}
    if tied and "lm_head" in by_module:
        return Layers(layers, ignored, rows, saved, (by_module["embed_tokens"], by_module["lm_head"]))
    if tied and config.use_dora:
        raise UnsupportedFeature(path, "DoRA on a tied head without tensors", "save the tensors of lm_head too")
    if tied:
        layers.append(_tied_head(by_module["embed_tokens"], scales))
    return Layers(layers, ignored, rows, saved, None)


def _sort(
    path: Path, tensors: Mapping[str, TensorInfo], model: ModelConfig, config: AdapterConfig, saved: Saved
) -> tuple[dict[Target, dict[Part, str]], dict[str, str]]:
    expected = targets(model, config)
    found: dict[Target, dict[Part, str]] = {}
    elsewhere = set(saved_keys(saved))  # see `find_saved`, `find_rows`
    elsewhere.update(row_keys().values() if config.trainable_token_indices else ())
    ignored, unknown = {}, []
    for key in tensors:
        if key in elsewhere:
            continue
        if key in expected:
            target, part = expected[key]
            found.setdefault(target, {})[part] = key
        elif reason := ignored_reason(key):
            ignored[key] = reason
        elif feature := foreign_feature(key, config):
            raise UnsupportedFeature(path, f"{feature}, tensor {key},", "leave it out when training")
        else:
            unknown.append(f"tensor {key}: the base has no such module")
    _refuse(path, unknown)
    if not found and not any(saved.values()):
        raise BadCheckpoint(path, f"none of its {len(tensors)} tensors is a LoRA factor")
    return found, ignored


def _refuse_embedding(path: Path, found: Iterable[Target], config: AdapterConfig) -> None:
    """What peft has for linear modules alone."""
    for field, value in (("lora_bias", config.lora_bias), ("alora_invocation_tokens", config.alora_invocation_tokens)):
        if value and any(target.module == "embed_tokens" for target in found):
            raise UnsupportedFeature(path, f"{field} with LoRA on embed_tokens", "train it without one of the two")


class _Scales:
    """The rank and the scale of every module, by PEFT's rules."""

    def __init__(self, path: Path, config: AdapterConfig) -> None:
        self._ranks = Pattern(path, "rank_pattern", config.rank_pattern, config.r)
        self._alphas = Pattern(path, "alpha_pattern", config.alpha_pattern, config.lora_alpha)
        self._stabilised = config.use_rslora

    def rank(self, name: str) -> int:
        return self._ranks.value(name)

    def scale(self, name: str) -> float:
        """alpha / r, or with rsLoRA (https://arxiv.org/abs/2312.03732) alpha / sqrt(r)."""
        rank = self.rank(name)
        return self._alphas.value(name) / (math.sqrt(rank) if self._stabilised else rank)


def _shape_problems(layer: Layer, tensors: Mapping[str, TensorInfo], model: ModelConfig) -> Iterable[str]:
    size = module_shapes(model)[layer.target.module]
    for key, rank_axis, width, side in ((layer.a, 0, size.d_in, "in"), (layer.b, 1, size.d_out, "out")):
        shape = tensors[key].shape
        if len(shape) < 2 or 0 in shape:
            yield f"tensor {key}: has shape {list(shape)}: {UNGATHERED}"
        elif len(shape) > 2:
            yield f"tensor {key}: has {len(shape)} dimensions; a LoRA factor has 2"
        elif shape[rank_axis] != layer.rank:
            yield f"tensor {key}: has rank {shape[rank_axis]} where adapter_config.json says {layer.rank}"
        elif shape[1 - rank_axis] != width:
            yield (
                f"tensor {key}: is for {shape[1 - rank_axis]} {side}put features, this base has {width}: "
                "is it an adapter of another base model?"
            )
    for vector in filter(None, (layer.magnitude, layer.bias)):
        if (found := tensors[vector].shape) != (size.d_out,):
            yield f"tensor {vector}: has shape {list(found)} where this base has {size.d_out} output features"


def _row_problems(
    found: list[TokenRows], by_target: Iterable[Target], tensors: Mapping[str, TensorInfo], model: ModelConfig
) -> list[str]:
    targeted = {target.module for target in by_target}
    problems = [
        f"tensor {rows.key}: {rows.module} has trained rows, and LoRA too; peft has one of the two"
        for rows in found
        if rows.module in targeted
    ]
    return [*problems, *(problem for rows in found for problem in row_problems(rows, tensors, model))]


def _whole_problems(
    ignored: Iterable[str], saved: Saved, tensors: Mapping[str, TensorInfo], model: ModelConfig
) -> list[str]:
    """What is wrong with the shapes of embeddings and heads that are in the file whole."""
    expected = (model.vocab_size, model.hidden_size)
    return [
        f"tensor {key}: is {list(tensors[key].shape)} where this base has {list(expected)}: the vocabulary was "
        "resized, or it is an adapter of another base model"
        for key in (*filter(BASE_COPIES.__contains__, ignored), *saved_keys(saved))
        if tensors[key].shape != expected
    ]


def _tied_head(embedding: Layer, scales: _Scales) -> Layer:
    """What PEFT gives a head that is tied to the embedding and has no tensors of its own."""
    head = Target("lm_head", 0, "lm_head")
    return Layer(head, embedding.b, embedding.a, embedding.rank, scales.scale(head.name), transposed=True)


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise BadCheckpoint(path, *problems)
