"""`convert base`: from a Hugging Face directory or a GGUF file to a base directory, whole or not at all."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from convert.base.converted_source import ConvertedSource
from convert.base.gguf_config import read_gguf_config
from convert.base.gguf_file import GgufFile
from convert.base.gguf_tokenizer import read_gguf_tokenizer
from convert.base.hf_config import read_hf_config
from convert.base.hf_packing import read_packing
from convert.base.packed_source import PackedSource
from convert.base.source import GgufSource, SafetensorsSource, TensorSource
from convert.base.tokenizer_files import TokenizerFiles, read_hf_tokenizer
from convert.base.weights import convert_weights
from openlora_jax.config import Dtype
from openlora_jax.digest import ContentDigest
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.stored import weight_bytes
from openlora_jax.model.streaming import NewWeights
from openlora_jax.model.weights import weight_table
from openlora_jax.progress import Progress
from openlora_jax.quantization.format import Format, Groups, choose
from openlora_jax.staging import new_directory


@dataclass(frozen=True, slots=True)
class BaseReport:
    """What a conversion made: the manifest as written, and the size of the weights."""

    manifest: BaseManifest
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base model as found: its architecture, its tokenizer, and its tensors, still on disk."""

    config: ModelConfig
    tokenizer: TokenizerFiles
    tensors: TensorSource


def convert_base(
    source: Path,
    destination: Path,
    dtype: Dtype,
    progress: Progress,
    quant: Format | None = None,
    groups: Groups | None = None,
    symmetric: bool = False,
) -> BaseReport:
    """Converts a base model, one weight at a time: memory for the largest as it is stored, and for a block of it.

    Args:
        source: a Hugging Face directory, a `.gguf` file of architecture llama, or a base directory.
        destination: the directory to make; it may exist if it is empty.
        dtype: of the weights as stored; of a quantised model, those of norms and biases.
        progress: called with the stage's name, what is done and what there is, in bytes.
        quant: the format of a quantised model, as for `choose`; None for a plain one.
        groups: of its columns.
        symmetric: without offsets.

    Raises:
        BadCheckpoint: the source is malformed, incomplete or contradicts itself; every problem is listed.
        UnsupportedFeature: the source is sound, but not a model that is served here, or not in this format.
        InvalidRequest: there is no such format.
        CannotInstall: the destination is in use, or the disk is full or not writable.
    """
    with _opened(source) as found:
        own = found.tensors.quantization
        config = replace(found.config, quantization=choose(quant, groups, symmetric, own) if quant else None)
        size = weight_bytes(config, dtype)
        with new_directory(destination, size) as stage:
            digest, written = ContentDigest(config.to_json()), NewWeights(stage, weight_table(config), dtype)
            for name, array in convert_weights(found.tensors, config, dtype, progress):
                digest.add(name, array)
                written.write(name, array)
            found.tokenizer.write(stage)
            manifest = BaseManifest(config=config, dtype=dtype, digest=digest.hex(), source=_name(source.resolve()))
            manifest.write(stage)
    shapes = [weight.shape for weight in weight_table(config).values()]
    return BaseReport(manifest, len(shapes), sum(map(math.prod, shapes)), size)


def _name(source: Path) -> str:
    """What people call the source: the model of a Hugging Face cache, else the file or directory."""
    if source.parent.name == "snapshots":
        return source.parent.parent.name.rpartition("--")[2]
    return source.name


@contextmanager
def _opened(path: Path) -> Iterator[BaseSource]:
    """The source behind a path that the caller named himself, links included."""
    path = path.resolve()
    if (path / "manifest.json").exists() and not (path / "config.json").exists():
        found = _converted_source(path)
    else:
        found = _hf_source(path) if path.is_dir() else _gguf_source(path)
    try:
        yield found
    finally:
        found.tensors.close()


def _hf_source(folder: Path) -> BaseSource:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise BadCheckpoint(folder, "is an adapter, not a base model; use `openlora convert adapter`")
    config, packing = read_hf_config(folder), read_packing(folder)
    tokenizer = read_hf_tokenizer(folder, config.vocab_size)
    tensors = SafetensorsSource(folder) if packing is None else PackedSource(folder, packing)
    return BaseSource(config, tokenizer, tensors)


def _converted_source(base: Path) -> BaseSource:
    config = BaseManifest.read(base).config
    return BaseSource(config, read_hf_tokenizer(base, config.vocab_size), ConvertedSource(base, config))


def _gguf_source(path: Path) -> BaseSource:
    if not path.exists():
        raise BadCheckpoint(path, "does not exist; name a Hugging Face directory or a .gguf file")
    file = GgufFile(path)
    try:
        config = read_gguf_config(file)
        return BaseSource(config, read_gguf_tokenizer(file), GgufSource(file, config))
    except BaseException:
        file.close()
        raise
