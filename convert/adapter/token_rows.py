"""Trained token rows (`trainable_token_indices`): rows of the embedding, or of the head, in the place of the base's.

A row that is exchanged is a delta of rank 1: a one for the token, times the difference of the rows. So n rows are n
ranks of the module, exactly, and whatever serves, mixes and merges low-rank deltas does so with them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from convert.adapter.config import AdapterConfig
from convert.adapter.keys import PREFIX
from openlora_jax.adapters.factors import F32
from openlora_jax.adapters.manifest import MAX_RANK
from openlora_jax.adapters.modules import module_name
from openlora_jax.model.config import ModelConfig
from openlora_jax.safetensors_file import TensorInfo

SUFFIX = ".token_adapter.trainable_tokens_delta"
MODULES = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class TokenRows:
    """New rows of one module.

    Attributes:
        key: the tensor `[ids, width]`.
        ids: of the tokens, in the tensor's order.
    """

    module: str
    key: str
    ids: tuple[int, ...]

    def factors(self, rows: F32, base: F32) -> tuple[F32, F32]:
        """A `[ids, d_in]` and B `[ids, d_out]` of the delta, from the new rows and the base's `[vocabulary, width]`."""
        ids = list(self.ids)
        ones = np.zeros((len(ids), len(base)), np.float32)
        ones[np.arange(len(ids)), ids] = 1
        with np.errstate(over="ignore", invalid="ignore"):
            changes = rows - base[ids]
        return (ones, changes) if self.module == "embed_tokens" else (changes, ones)


def row_keys() -> dict[str, str]:
    """Module -> the tensor of its rows."""
    return {module: f"{PREFIX}{module_name(module, 0)}{SUFFIX}" for module in MODULES}


def find_rows(tensors: Mapping[str, TensorInfo], config: AdapterConfig, model: ModelConfig) -> list[TokenRows]:
    """The rows that a checkpoint has. As in PEFT, a tied head without rows of its own has the embedding's."""
    keys = row_keys()
    found = [TokenRows(module, key, tuple(_ids(config, module))) for module, key in keys.items() if key in tensors]
    if model.tie_word_embeddings and [rows.module for rows in found] == ["embed_tokens"]:
        found.append(TokenRows("lm_head", found[0].key, found[0].ids))
    return found


def row_problems(rows: TokenRows, tensors: Mapping[str, TensorInfo], model: ModelConfig) -> Iterable[str]:
    """What is wrong with the rows of one module."""
    expected = (len(rows.ids), model.hidden_size)
    if tensors[rows.key].shape != expected:
        yield (
            f"tensor {rows.key}: is {list(tensors[rows.key].shape)} where trainable_token_indices and this base have "
            f"{list(expected)}"
        )
    if len(set(rows.ids)) < len(rows.ids):
        yield f"trainable_token_indices: token {_repeated(rows.ids)} of {rows.module} is named twice"
    if outside := [each for each in rows.ids if not 0 <= each < model.vocab_size]:
        yield f"trainable_token_indices: {outside[0]} is outside the vocabulary, 0..{model.vocab_size - 1}"
    if len(rows.ids) > MAX_RANK:
        yield f"trainable_token_indices: {len(rows.ids)} rows of {rows.module}, where {MAX_RANK} can be served"


def _ids(config: AdapterConfig, module: str) -> list[int]:
    indices = config.trainable_token_indices or []
    if isinstance(indices, list):
        return indices if module == "embed_tokens" else []
    return next((ids for name, ids in indices.items() if module_name(module, 0).endswith(name)), [])


def _repeated(ids: tuple[int, ...]) -> int:
    return next(each for index, each in enumerate(ids) if each in ids[:index])
