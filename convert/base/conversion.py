"""`convert base`: from a Hugging Face directory or a GGUF file to a base directory, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.base.gguf_config import read_gguf_config
from convert.base.gguf_file import GgufFile
from convert.base.gguf_tokenizer import read_gguf_tokenizer
from convert.base.hf_config import read_hf_config
from convert.base.source import GgufSource, SafetensorsSource, TensorSource
from convert.base.tokenizer_files import TokenizerFiles, read_hf_tokenizer
from convert.base.weights import convert_weights, weight_bytes
from openlora_jax.config import Dtype
from openlora_jax.digest import content_digest
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.progress import Progress
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


def convert_base(source: Path, destination: Path, dtype: Dtype, progress: Progress) -> BaseReport:
    """Converts a base model; `progress` hears of every stage in bytes.

    Args:
        source: a Hugging Face directory, or a `.gguf` file of architecture llama.
        destination: the directory to make; it may exist if it is empty.
        dtype: of the weights as stored.
        progress: called with the stage's name, what is done and what there is, in bytes.

    Raises:
        BadCheckpoint: the source is malformed, incomplete or contradicts itself; every problem is listed.
        UnsupportedFeature: the source is sound, but not a model that is served here.
        CannotInstall: the destination is in use, or the disk is full or not writable.
    """
    with _opened(source) as found, new_directory(destination, weight_bytes(found.config, dtype)) as stage:
        values = convert_weights(found.tensors, found.config, dtype, progress)
        size = sum(value.nbytes for value in values.values())
        progress("digest", 0, size)
        digest = content_digest(found.config.to_json(), values)
        progress("saving", 0, size)
        write_weights(stage, values)
        found.tokenizer.write(stage)
        manifest = BaseManifest(config=found.config, dtype=dtype, digest=digest, source=_name(source.resolve()))
        manifest.write(stage)
    progress("saving", size, size)
    return BaseReport(manifest, len(values), sum(value.size for value in values.values()), size)


def _name(source: Path) -> str:
    """What people call the source: the model of a Hugging Face cache, else the file or directory."""
    if source.parent.name == "snapshots":
        return source.parent.parent.name.rpartition("--")[2]
    return source.name


@contextmanager
def _opened(path: Path) -> Iterator[BaseSource]:
    """The source behind a path that the caller named himself, links included."""
    path = path.resolve()
    found = _hf_source(path) if path.is_dir() else _gguf_source(path)
    try:
        yield found
    finally:
        found.tensors.close()


def _hf_source(folder: Path) -> BaseSource:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise BadCheckpoint(folder, "is an adapter, not a base model; use `openlora convert adapter`")
    config = read_hf_config(folder)
    return BaseSource(config, read_hf_tokenizer(folder, config.vocab_size), SafetensorsSource(folder))


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
