"""Names of tensors in a PEFT checkpoint: which module of which layer each belongs to, or why it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from convert.adapter.config import AdapterConfig
from openlora_jax.adapters.modules import SAVEABLE, module_name, module_shapes
from openlora_jax.model.config import ModelConfig

Part = Literal["A", "B", "magnitude", "bias"]

PREFIX = "base_model.model."

_LINEAR: Mapping[str, Part] = {".lora_A.weight": "A", ".lora_B.weight": "B"}
_EMBEDDING: Mapping[str, Part] = {".lora_embedding_A": "A", ".lora_embedding_B": "B"}

_MAGNITUDE: Mapping[str, Part] = {".lora_magnitude_vector": "magnitude"}
_BIAS: Mapping[str, Part] = {".lora_B.bias": "bias"}

TRAINING_STATE = {
    ".lora_monteclora_sampler.": "MonteCLoRA's sampler, used in training alone",
    ".lora_velora_embed": "VeLoRA's projection, used in training alone",
}
"""Parts of a name, and why a tensor with it has no part in inference."""

BASE_COPY = ".base_layer.weight"
"""How the copy of a base weight ends, which peft saves of embedding and head where either is targeted."""
BASE_COPIES = {f"{PREFIX}{module_name(module, 0)}{BASE_COPY}": module for module in SAVEABLE}
"""The tensors of such copies, and whose they are."""

FOREIGN = {
    ".lora_magnitude_vector": "DoRA's magnitude without use_dora",
    ".lora_diag": "KaSA's diagonal",
    ".trainable_tokens_delta": "trained token rows without trainable_token_indices",
    ".lora_B.bias": "a bias on lora_B without lora_bias",
    ".bias": "a trained bias",
    ".weight": "a full copy of a module's weight that modules_to_save does not name",
}
"""Ends of names, and what they mean that is not served, or not what the configuration says."""


@dataclass(frozen=True, slots=True)
class Target:
    """One module of one layer, under PEFT's name for it. Embedding and head have the layer 0 alone."""

    module: str
    layer: int
    name: str


def parts(module: str, config: AdapterConfig) -> dict[str, Part]:
    """Name ends of the tensors that an adapter has for each module that it targets."""
    factors = _EMBEDDING if module == "embed_tokens" else _LINEAR
    return {**factors, **(_MAGNITUDE if config.use_dora else {}), **(_BIAS if config.lora_bias else {})}


def targets(model: ModelConfig, config: AdapterConfig) -> dict[str, tuple[Target, Part]]:
    """Every tensor name that an adapter of this base may hold."""
    found = {}
    for module, shape in module_shapes(model).items():
        for layer in range(shape.layers):
            target = Target(module, layer, module_name(module, layer))
            for suffix, part in parts(module, config).items():
                found[f"{PREFIX}{target.name}{suffix}"] = (target, part)
    return found


def ignored_reason(key: str) -> str | None:
    """Why a tensor may be left out, if it may."""
    if key in BASE_COPIES:
        return "a copy of the base's own weight; not compared with it"
    return next((reason for part, reason in TRAINING_STATE.items() if part in key), None)


def foreign_feature(key: str, config: AdapterConfig) -> str | None:
    """What a tensor belongs to that is not served, as far as its name says."""
    if key.endswith((*parts("embed_tokens", config), *parts("lm_head", config))):
        return None
    return next((feature for suffix, feature in FOREIGN.items() if key.endswith(suffix)), None)
