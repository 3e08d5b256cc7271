"""An adapter on disk: `manifest.json` and an orbax checkpoint of a dozen stacked arrays, identified by their digest.

The arrays are stored uncompressed, one chunk each: nothing can expand while it is read, and reading is copying.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from openlora_jax.adapters.manifest import Manifest
from openlora_jax.config import Dtype
from openlora_jax.digest import content_digest
from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import read_json_object

Tensor = np.ndarray[Any, np.dtype[Any]]
Tensors = Mapping[str, Tensor]
"""Tensor name -> array, with the names, shapes and dtype that the artifact's `Manifest` states."""

DTYPES: Mapping[Dtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ZARR_DTYPES: Mapping[Dtype, str] = {"float32": "<f4", "bfloat16": "bfloat16"}
_MANIFEST = "manifest.json"
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
    (folder / _MANIFEST).write_text(json.dumps(manifest.to_fields(), indent=2) + "\n")
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
    path = folder / _MANIFEST
    try:
        return Manifest.from_fields(read_json_object(path))
    except ValueError as error:
        raise BadCheckpoint(path, str(error)) from error


def read_artifact(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """The whole artifact, in host memory; nothing refers to the files afterwards.

    Every array's stored shape, dtype, layout and file size is compared with the manifest before memory is taken for it.

    Raises:
        BadCheckpoint: a file is missing, damaged or at odds with the manifest.
    """
    manifest = read_manifest(folder)
    opened = {}
    for name, shape in manifest.tensor_shapes.items():
        path = tensor_folder(folder, name)
        _check_chunk(path / CHUNK, int(np.prod(shape)) * DTYPES[manifest.dtype].itemsize)
        opened[name] = ts.open(_zarr(path, shape, manifest.dtype), open=True, read=True)
    try:
        reads = {name: store.result().read() for name, store in opened.items()}
        return manifest, {name: read.result() for name, read in reads.items()}
    except ValueError as error:
        raise BadCheckpoint(folder, f"damaged tensors: {str(error).split(' [')[0]}") from error


def _check(manifest: Manifest, tensors: Tensors) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != manifest.tensor_shapes:
        raise ValueError(f"tensors {shapes} where the manifest states {manifest.tensor_shapes}")
    if any(tensor.dtype != DTYPES[manifest.dtype] for tensor in tensors.values()):
        raise ValueError(f"a tensor is not {manifest.dtype}, as the manifest states")


def _check_chunk(path: Path, size: int) -> None:
    try:
        found = path.lstat().st_size
    except OSError as error:
        raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from error
    if found != size:
        raise BadCheckpoint(path, f"has {found:,} bytes where the manifest states {size:,}")


def _zarr(path: Path, shape: tuple[int, ...], dtype: Dtype) -> dict[str, Any]:
    """How orbax stores one array; tensorstore refuses what is stored otherwise.

    Read by tensorstore itself, orbax's own reader, because a restore through orbax takes twice as long.
    """
    metadata = {"shape": shape, "chunks": shape, "dtype": _ZARR_DTYPES[dtype], "compressor": None, "filters": None}
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
