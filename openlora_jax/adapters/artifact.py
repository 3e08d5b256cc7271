"""An adapter on disk: `manifest.json` and an orbax checkpoint of a dozen stacked arrays, identified by their digest.

The arrays are stored uncompressed, one chunk each: nothing can expand while it is read, and reading is copying.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from openlora_jax.adapters.chunk_file import ChunkFile, FileIdentity, allocate
from openlora_jax.adapters.manifest import ArrayType, Manifest, StoredDtype
from openlora_jax.digest import content_digest
from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import JSON_LIMIT, parse_json_object, read_json_object, read_limited

Tensor = np.ndarray[Any, np.dtype[Any]]
Tensors = Mapping[str, Tensor]
"""Array name -> array, with the names, shapes and dtypes that the artifact's `Manifest` states; see its `arrays`."""

DTYPES: Mapping[StoredDtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
}
_ZARR_DTYPES: Mapping[StoredDtype, str] = {
    "float32": "<f4",
    "bfloat16": "bfloat16",
    "float16": "<f2",
    "int8": "|i1",
    "uint8": "|u1",
}
MANIFEST = "manifest.json"
_TENSORS = "tensors"
CHUNK = "0.0.0.0"
"""The name of the file that holds an array's bytes, in the folder that `tensor_folder` gives."""


def tensor_folder(folder: Path, name: str) -> Path:
    """Where one tensor of an artifact is stored."""
    return folder / _TENSORS / name


def artifact_digest(manifest: Manifest, tensors: Tensors) -> str:
    """The identity of an adapter: its content, without names, paths and times.

    Raises:
        ValueError: `tensors` is not what `manifest` states.
    """
    _check(manifest, tensors)
    return content_digest(manifest.to_fields(), tensors)


def write_artifact(folder: Path, manifest: Manifest, tensors: Tensors) -> None:
    """Writes an artifact into an empty folder.

    Raises:
        ValueError: `tensors` is not what `manifest` states.
        OSError: the disk is full, or cannot be written.
    """
    _check(manifest, tensors)
    (folder / MANIFEST).write_text(json.dumps(manifest.to_fields(), indent=2) + "\n")
    checkpoint = epath.Path(folder / _TENSORS)
    checkpoint.mkdir()
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    try:
        handler.save(checkpoint, args=ocp.args.PyTreeSave(dict(tensors)))
    except ValueError as error:  # how tensorstore says that the disk is full
        raise OSError(str(error)[:200]) from error
    finally:
        handler.close()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        BadCheckpoint: missing or damaged.
    """
    path = folder / MANIFEST
    return parse_manifest(path, read_limited(path, JSON_LIMIT))


def parse_manifest(path: Path, text: bytes) -> Manifest:
    """The manifest in a file's text. Raises BadCheckpoint."""
    try:
        return Manifest.from_fields(parse_json_object(path, text))
    except ValueError as error:
        raise BadCheckpoint(path, str(error)) from error


@dataclass(frozen=True, slots=True)
class Artifact:
    """A whole artifact in host memory, as its files said; nothing refers to the files any more.

    Attributes:
        text: the file that the manifest is from.
        tensors: each lies in memory page by page, `[pages, layers, rows, width]`, as page writes take them.
        files: what was read, by path below the artifact's folder.
    """

    manifest: Manifest
    text: bytes
    tensors: dict[str, Tensor]
    files: Mapping[str, FileIdentity]


def read_artifact(folder: Path) -> Artifact:
    """Reads an artifact without looking at what orbax says of its arrays, see `check_arrays`.

    Every file is opened before the first is read, so that the kernel fetches them side by side, and each is read in one
    call without the interpreter's lock. Sizes are compared with the manifest before memory is taken.

    Raises:
        BadCheckpoint: a file is missing, damaged or at odds with the manifest.
    """
    path = folder / MANIFEST
    identity = FileIdentity.at(path)
    text = read_limited(path, JSON_LIMIT)
    manifest = parse_manifest(path, text)
    with ExitStack() as closing:
        chunks = {
            name: closing.enter_context(ChunkFile(tensor_folder(folder, name) / CHUNK, shape, DTYPES[dtype]))
            for name, (shape, dtype) in manifest.arrays.items()
        }
        files = {str(chunk.path.relative_to(folder)): chunk.identity for chunk in chunks.values()}
        memory = allocate([chunk.identity.size for chunk in chunks.values()])
        tensors = {name: chunk.read(part) for (name, chunk), part in zip(chunks.items(), memory, strict=True)}
    if scale := _not_finite(manifest, tensors):
        raise BadCheckpoint(tensor_folder(folder, scale), "holds a scale that is not finite")
    return Artifact(manifest, text, tensors, {MANIFEST: identity, **files})


class ArrayFile(NamedTuple):
    """The file of one array.

    Attributes:
        name: its path below the artifact's folder.
        size: in bytes.
        zarray: what `.zarray` beside it must say, for zarr to read it.
    """

    name: str
    size: int
    zarray: str


def array_files(manifest: Manifest) -> list[ArrayFile]:
    """The files of all arrays."""
    return [
        ArrayFile(
            str(tensor_folder(Path(), name) / CHUNK),
            array.nbytes,
            json.dumps({**_zarray(array), "dimension_separator": ".", "fill_value": None}),
        )
        for name, array in manifest.arrays.items()
    ]


def check_arrays(folder: Path, manifest: Manifest) -> None:
    """Whether orbax would restore what `read_artifact` reads.

    Raises:
        BadCheckpoint: an array is stored otherwise than as one chunk of plain numbers.
    """
    for name, array in manifest.arrays.items():
        path = tensor_folder(folder, name) / ".zarray"
        stored = read_json_object(path)
        for key, value in _zarray(array).items():
            if stored.get(key) != value:
                raise BadCheckpoint(path, f"{key} is {str(stored.get(key))[:80]} where orbax stores {value}")


def _check(manifest: Manifest, tensors: Tensors) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stated = {name: array.shape for name, array in manifest.arrays.items()}
    if shapes != stated:
        raise ValueError(f"tensors {shapes} where the manifest states {stated}")
    for name, array in manifest.arrays.items():
        if tensors[name].dtype != DTYPES[array.dtype]:
            raise ValueError(f"{name} is not {array.dtype}, as the manifest states")
    if scale := _not_finite(manifest, tensors):
        raise ValueError(f"{scale} holds a scale that is not finite")


def _not_finite(manifest: Manifest, tensors: Tensors) -> str | None:
    """The first array of scales that has NaN or an infinity, which would spread to all that share a step with them."""
    scales = (name for name in manifest.arrays if name.endswith(".scale"))
    return next((name for name in scales if not np.isfinite(tensors[name]).all()), None)


def _zarray(array: ArrayType) -> dict[str, Any]:
    """What orbax says of an array that it stores as one chunk of plain numbers."""
    return {
        "zarr_format": 2,
        "shape": list(array.shape),
        "chunks": list(array.shape),
        "dtype": _ZARR_DTYPES[array.dtype],
        "order": "C",
        "compressor": None,
        "filters": None,
    }
