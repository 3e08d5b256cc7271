"""Where the weights of a base model come from: tensors under their Hugging Face names, read a block at a time."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from numpy.typing import NDArray

from convert.base.gguf_blocks import as_stored
from convert.base.gguf_file import GgufFile
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.config import ModelConfig
from openlora_jax.quantization.format import Quantization
from openlora_jax.quantization.matrix import QuantizedMatrix
from openlora_jax.safetensors_file import DTYPES, SafetensorsFile
from openlora_jax.untrusted import read_json_object

BLOCK_ELEMENTS = 4 << 20
"""Elements of a tensor that are in memory at once, beside the output."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 16 << 20
SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")
TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")


@runtime_checkable
class TensorSource(Protocol):
    """Tensors by Hugging Face name.

    Attributes:
        path: what the tensors are read from, for error messages.
        shapes: the shape of every tensor that the source holds.
        quantization: what its matrices are quantised in, where that is one format.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    quantization: Quantization | None

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """A tensor in order, cut along its first dimension."""
        ...

    def packed(self, name: str, how: Quantization) -> Iterator[QuantizedMatrix] | None:
        """The rows of a tensor that the source stores in this very format, in order; None where it does not."""
        ...

    def close(self) -> None: ...


class SafetensorsSource:
    """The safetensors files of a Hugging Face directory, one or several."""

    quantization: Quantization | None = None

    def __init__(self, folder: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> None:
        self.path = folder
        self._dtypes = dtypes
        self._files: dict[str, SafetensorsFile] = {}
        self._holder: dict[str, SafetensorsFile] = {}
        try:
            self._open(_shards(folder))
        except BaseException:
            self.close()
            raise
        self.shapes = {name: file.tensors[name].shape for name, file in self._holder.items()}

    def _open(self, shards: Mapping[str, set[str] | None]) -> None:
        problems = []
        for shard, indexed in shards.items():
            file = self._files[shard] = SafetensorsFile(self.path / shard, self._dtypes)
            for name in file.tensors:
                if name in self._holder:
                    problems.append(f"tensor {name!r} is in {self._holder[name].path.name} and again in {shard}")
                self._holder[name] = file
            for name in sorted((indexed or set()) - file.tensors.keys()):
                problems.append(f"tensor {name[:80]!r} is not in {shard}, where {INDEX} puts it")
        if problems:
            raise BadCheckpoint(self.path, *problems)

    def file_of(self, name: str) -> Path:
        return self._holder[name].path

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        return self._holder[name].blocks(name, BLOCK_ELEMENTS)

    def read(self, name: str) -> NDArray[Any]:
        """A tensor, whole."""
        return self._holder[name].read(name)

    def packed(self, name: str, how: Quantization) -> Iterator[QuantizedMatrix] | None:
        return None

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """The weight files with the tensors that the index puts into each; None for a single file, which has no index."""
    if os.path.lexists(folder / SINGLE):
        return {SINGLE: None}
    if os.path.lexists(folder / INDEX):
        return _indexed_shards(folder / INDEX)
    for file in TORCH_FILES:
        if (folder / file).exists():
            remedy = "save it as safetensors: AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST)"
            raise UnsupportedFeature(folder / file, "a pickled PyTorch checkpoint", remedy)
    raise BadCheckpoint(folder, f"holds neither {SINGLE} nor {INDEX}")


def _indexed_shards(path: Path) -> dict[str, set[str] | None]:
    weight_map = read_json_object(path, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(path, "has no weight_map")
    shards: dict[str, set[str] | None] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise BadCheckpoint(path, f"{str(shard)[:80]!r} is not the name of a safetensors file in this folder")
        names = shards.setdefault(shard, set())
        if names is not None:
            names.add(name)
    return dict(sorted(shards.items()))


GGUF_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.#.attn_norm": "model.layers.#.input_layernorm",
    "blk.#.attn_q": "model.layers.#.self_attn.q_proj",
    "blk.#.attn_k": "model.layers.#.self_attn.k_proj",
    "blk.#.attn_v": "model.layers.#.self_attn.v_proj",
    "blk.#.attn_output": "model.layers.#.self_attn.o_proj",
    "blk.#.ffn_norm": "model.layers.#.post_attention_layernorm",
    "blk.#.ffn_gate": "model.layers.#.mlp.gate_proj",
    "blk.#.ffn_up": "model.layers.#.mlp.up_proj",
    "blk.#.ffn_down": "model.layers.#.mlp.down_proj",
}
"""llama.cpp's names and Hugging Face's, with `#` for the layer and without `.weight` or `.bias`."""

ROTATED = (".self_attn.q_proj.weight", ".self_attn.k_proj.weight")
CONFIGURATION = "rope_freqs.weight"
"""A tensor that is not a weight: `gguf_config` reads it."""


class GgufSource:
    """The tensors of a GGUF file of architecture `llama`, dequantised, in Hugging Face's names and order of rows."""

    quantization: Quantization | None = None

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self.path = file.path
        self._file = file
        self._head_dim = config.head_dim
        self._stored = {hf_name(name): name for name in file.tensors if name != CONFIGURATION}
        self.shapes = {name: file.tensors[stored].shape for name, stored in self._stored.items()}

    def file_of(self, name: str) -> Path:
        return self.path

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """See `TensorSource`. llama.cpp stores a head's rows in the order of its own rotary form; this undoes it."""
        stored = self._stored[name]
        for block in self._file.blocks(stored, self._elements(name)):
            yield self._in_order(name, block)

    def packed(self, name: str, how: Quantization) -> Iterator[QuantizedMatrix] | None:
        stored = self._stored[name]
        unpack = as_stored(self._file.tensors[stored].kind, how)
        if unpack is None:
            return None
        blocks = self._file.raw_blocks(stored, self._elements(name))
        return (jax.tree.map(partial(self._in_order, name), unpack(block)) for block in blocks)

    def _elements(self, name: str) -> int:
        """Of a block: whole heads, where their rows have to be put in order."""
        if not name.endswith(ROTATED):
            return BLOCK_ELEMENTS
        head = self._head_dim * self.shapes[name][1]
        return max(1, BLOCK_ELEMENTS // head) * head

    def _in_order(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        if not name.endswith(ROTATED):
            return rows
        pairs = rows.reshape(-1, self._head_dim // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def close(self) -> None:
        self._file.close()


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name outside the table stays as it is, to be reported as unknown."""
    stem, _, suffix = name.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", stem)
    pattern = stem.replace(f".{layer[1]}.", ".#.", 1) if layer else stem
    known = GGUF_NAMES.get(pattern)
    if known is None:
        return name
    return f"{known.replace('#', layer[1] if layer else '')}.{suffix}"
