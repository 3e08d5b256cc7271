"""Modules that an adapter has whole (`modules_to_save`): an embedding or a head in the place of the base's.

As in PEFT, each takes the place of one module: of a tied base, a saved embedding leaves the head as the base has it,
and the other way round, unless `ensure_weight_tying` says that they are the same.
"""

from collections.abc import Collection, Iterable, Mapping

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


def saved_keys(saved: Saved) -> Iterable[str]:
    """Their tensors, each once."""
    return dict.fromkeys(key for keys in saved.values() for key in keys)


def saved_problems(saved: Saved, changed: Collection[str]) -> Iterable[str]:
    """What cannot be, of modules that are saved and those that are `changed` by LoRA or trained rows."""
    for module, keys in saved.items():
        if not keys:
            yield f"modules_to_save: there is no tensor of {module}"
        if module in changed:
            yield f"modules_to_save: {module} is saved whole, and has LoRA or trained rows too; train one of the two"


def _key(module: str) -> str:
    return f"{PREFIX}{module_name(module, 0)}.weight"
