"""From the header of a PEFT checkpoint to what each tensor is for. Everything is checked before anything is read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.adapter.config import AdapterConfig
from convert.adapter.keys import BASE_COPY, Factor, Target, foreign_feature, ignored_reason, targets
from convert.adapter.patterns import Pattern
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
    """One module of one layer: its two tensors, and the scale that belongs to their product.

    Attributes:
        a: the tensor `[rank, d_in]`, or `[d_in, rank]` if transposed.
        b: the tensor `[d_out, rank]`, or `[rank, d_out]` if transposed.
        transposed: a head tied to an embedding: peft makes its A of the embedding's B, and the other way round.
    """

    target: Target
    a: str
    b: str
    rank: int
    scale: float
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Layers:
    """What a checkpoint holds.

    Attributes:
        layers: every one.
        ignored: the tensors that are left out, and why.
        tied: embedding and head, if `ensure_weight_tying` says that they share their tensors and both have some.
    """

    layers: list[Layer]
    ignored: dict[str, str]
    tied: tuple[Layer, Layer] | None


def find_layers(path: Path, tensors: Mapping[str, TensorInfo], config: AdapterConfig, model: ModelConfig) -> Layers:
    """Assigns every tensor to its module and layer, and checks its shape against configuration and base.

    Raises:
        BadCheckpoint: tensors that belong to no module, lack their other half, are damaged or have the wrong shape; all
            of them at once. Or no tensor is left.
        UnsupportedFeature: a tensor of something that is not plain LoRA; a pattern that cannot be matched safely.
    """
    pairs, ignored = _sort(path, tensors, model)
    scales = _Scales(path, config)
    embedding = next((target for target in pairs if target.module == "embed_tokens"), None)
    tied = embedding if config.ensure_weight_tying and model.tie_word_embeddings else None
    layers, problems = [], _base_copy_problems(ignored, tensors, model)
    for target, pair in pairs.items():
        if len(pair) < 2:
            key, missing = next(iter(pair.values())), "B" if "A" in pair else "A"
            problems.append(f"tensor {key}: its lora_{missing} is missing")
            continue
        rank = scales.rank(tied.name if tied and target.module == "lm_head" else target.name)
        layer = Layer(target, pair["A"], pair["B"], rank, scales.scale(target.name))
        problems += _shape_problems(layer, tensors, model)
        layers.append(layer)
    _refuse(path, problems)
    by_module = {layer.target.module: layer for layer in layers}
    if tied and "lm_head" in by_module:
        return Layers(layers, ignored, (by_module["embed_tokens"], by_module["lm_head"]))
    if tied:
        layers.append(_tied_head(by_module["embed_tokens"], scales))
    return Layers(layers, ignored, None)


def _sort(
    path: Path, tensors: Mapping[str, TensorInfo], model: ModelConfig
) -> tuple[dict[Target, dict[Factor, str]], dict[str, str]]:
    expected = targets(model)
    pairs: dict[Target, dict[Factor, str]] = {}
    ignored, unknown = {}, []
    for key in tensors:
        if key in expected:
            target, factor = expected[key]
            pairs.setdefault(target, {})[factor] = key
        elif reason := ignored_reason(key):
            ignored[key] = reason
        elif feature := foreign_feature(key):
            raise UnsupportedFeature(path, f"{feature}, tensor {key},", "only plain LoRA can be served")
        else:
            unknown.append(f"tensor {key}: the base has no such module")
    _refuse(path, unknown)
    if not pairs:
        raise BadCheckpoint(path, f"none of its {len(tensors)} tensors is a LoRA factor")
    return pairs, ignored


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


def _base_copy_problems(ignored: Iterable[str], tensors: Mapping[str, TensorInfo], model: ModelConfig) -> list[str]:
    expected = (model.vocab_size, model.hidden_size)
    return [
        f"tensor {key}: is {list(tensors[key].shape)} where this base has {list(expected)}: the vocabulary was "
        "resized, or it is an adapter of another base model"
        for key in ignored
        if key.endswith(BASE_COPY) and tensors[key].shape != expected
    ]


def _tied_head(embedding: Layer, scales: _Scales) -> Layer:
    """What PEFT gives a head that is tied to the embedding and has no tensors of its own."""
    head = Target("lm_head", 0, "lm_head")
    return Layer(head, embedding.b, embedding.a, embedding.rank, scales.scale(head.name), transposed=True)


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise BadCheckpoint(path, *problems)
