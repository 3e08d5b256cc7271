"""Modules that an adapter has whole (`modules_to_save`): an embedding or a head in the place of the base's.

As in PEFT, each takes the place of one module: of a tied base, a saved embedding leaves the head as the base has it,
and the other way round, unless `ensure_weight_tying` says that they are the same.
"""

from collections.abc import Iterable, Mapping

from convert.adapter.config import AdapterConfig
from convert.adapter.keys import PREFIX
from openlora_jax.adapters.modules import SAVEABLE, Saveable, module_name
from openlora_jax.model.config import ModelConfig
from openlora_jax.safetensors_file import TensorInfo

Saved = dict[Saveable, tuple[str, ...]]
"""Module -> the tensors of it, which are equal; none if it is missing."""


def find_saved(tensors: Mapping[str, TensorInfo], config: AdapterConfig, model: ModelConfig) -> Saved:
    """What a checkpoint has of the modules that its configuration names."""
    named = {name.rpartition(".")[2] for name in config.modules_to_save or ()}
    if named and config.ensure_weight_tying and model.tie_word_embeddings:
        found = tuple(key for module in SAVEABLE if (key := _key(module)) in tensors)
        return dict.fromkeys(SAVEABLE, found)
    return {module: (_key(module),) if _key(module) in tensors else () for module in SAVEABLE if module in named}


def saved_problems(saved: Saved, tensors: Mapping[str, TensorInfo], model: ModelConfig) -> Iterable[str]:
    """What is wrong with the tensors of saved modules."""
    expected = (model.vocab_size, model.hidden_size)
    for module, keys in saved.items():
        if not keys:
            yield f"modules_to_save: there is no tensor of {module}"
    for key in dict.fromkeys(key for keys in saved.values() for key in keys):
        if tensors[key].shape != expected:
            yield (
                f"tensor {key}: is {list(tensors[key].shape)} where this base has {list(expected)}: the vocabulary was "
                "resized, or it is an adapter of another base model"
            )


def _key(module: str) -> str:
    return f"{PREFIX}{module_name(module, 0)}.weight"
