"""A converted base model on disk.

BASE/manifest.json            format, architecture, dtype, content digest, source
BASE/weights/                 orbax: every weight of `weight_table` by its flat name; of a quantised one every part
BASE/tokenizer.json, BASE/tokenizer_config.json, and BASE/chat_template.jinja where the model has one
"""

import json
import math
from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import orbax.checkpoint as ocp
from numpy.typing import NDArray
from orbax.checkpoint.metadata import ArrayMetadata
from pydantic import TypeAdapter, ValidationError

from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.config import CHECKED, ModelConfig
from openlora_jax.model.stored import joined, stored_arrays
from openlora_jax.model.weight import Weight
from openlora_jax.model.weights import weight_table
from openlora_jax.untrusted import read_json_object

FORMAT = 1
DTYPES = tuple(np.dtype(dtype) for dtype in get_args(Dtype))
FACTORS = (".scale", ".offset", ".step")
"""Parts of quantised matrices that codes are multiplied by or moved by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseManifest:
    """What `manifest.json` says. `digest` covers the architecture and every weight; `source` is for people alone."""

    __pydantic_config__ = CHECKED

    config: ModelConfig
    dtype: Dtype
    digest: str
    source: str

    def write(self, base: Path) -> None:
        fields = {
            "format": FORMAT,
            "config": self.config.to_json(),
            "dtype": self.dtype,
            "digest": self.digest,
            "source": self.source,
        }
        (base / "manifest.json").write_text(json.dumps(fields, indent=2) + "\n")

    @classmethod
    def read(cls, base: Path) -> "BaseManifest":
        """Reads the manifest of a base directory.

        Raises:
            BadCheckpoint: no such directory, or not one that `openlora convert base` wrote with this version.
        """
        path = base / "manifest.json"
        fields = read_json_object(path)
        if fields.pop("format", None) != FORMAT:
            raise BadCheckpoint(path, f"is not a base of format {FORMAT}; convert the model again")
        try:
            return TypeAdapter(cls).validate_json(json.dumps(fields))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, item['loc']))[:100]}: {item['msg']}" for item in error.errors()]
            raise BadCheckpoint(path, "is not as this version writes it; convert the model again", *problems) from error


def write_weights(base: Path, values: Mapping[str, NDArray[Any]]) -> None:
    """Saves arrays by flat name, uncompressed and without a second copy in memory."""
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, handlers.ArrayHandler())
    )
    pytree = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False, type_handler_registry=registry)
    with ocp.Checkpointer(pytree) as checkpointer:
        checkpointer.save((base / "weights").absolute(), args=ocp.args.PyTreeSave(dict(values)))


def read_weights(base: Path, config: ModelConfig, dtype: Dtype) -> dict[str, Any]:
    """Every weight of the model by flat name, on the default device; those that are not quantised as `dtype`.

    Names, shapes and types are held against the model before a weight is read.

    Raises:
        BadCheckpoint: the directory is damaged or holds another model's weights.
    """
    [weights] = read_in_groups(base, config, dtype, [weight_table(config)])
    return weights


def read_in_groups(
    base: Path, config: ModelConfig, dtype: Dtype, groups: Iterable[Collection[str]]
) -> Generator[dict[str, Any], None, None]:
    """The same, a group of names after the other; who has done with one may let go of it before the next is read.

    Files stay open until it has ended, or the caller closes it.
    """
    path = (base / "weights").absolute()
    table = weight_table(config)
    try:
        handler = ocp.PyTreeCheckpointHandler(use_zarr3=True)
        with ocp.Checkpointer(handler) as checkpointer:
            check_stored(path, handler.metadata(path).tree, stored_arrays(table, dtype))
            for group in groups:
                yield _restored(checkpointer, path, {name: table[name] for name in group}, dtype)
    except (OSError, ValueError, KeyError) as error:
        raise BadCheckpoint(path, f"cannot be restored ({str(error)[:200]}); convert the model again") from error


def _restored(checkpointer: ocp.Checkpointer, path: Path, table: Mapping[str, Weight], dtype: Dtype) -> dict[str, Any]:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    how = {
        name: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, dtype=array.dtype)
        for name, array in stored_arrays(table, dtype).items()
    }
    args = ocp.args.PyTreeRestore(item=dict.fromkeys(how, 0), restore_args=how, partial_restore=True)
    values: dict[str, jax.Array] = checkpointer.restore(path, args=args)
    _check_scales(path, values)
    return joined(table, values)


def _check_scales(path: Path, arrays: Mapping[str, jax.Array]) -> None:
    factors = {name: array for name, array in arrays.items() if name.endswith(FACTORS)}
    bad = [f"{name} holds NaN or an infinity" for name, array in factors.items() if not np.isfinite(array).all()]
    if bad:
        raise BadCheckpoint(path, "is damaged; convert the model again", *sorted(bad))


def check_stored(path: Path, stored: Mapping[str, Any], arrays: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Holds what the files say of their arrays against the model's; a chunk is what a read allocates at once.

    Raises:
        BadCheckpoint: arrays that are missing, unknown or not as the model asks for.
    """
    problems = [f"{name} is missing" for name in arrays.keys() - stored.keys()]
    problems += [f"{str(name)[:100]} is unknown" for name in stored.keys() - arrays.keys()]
    for name in arrays.keys() & stored.keys():
        shape, dtype, array = arrays[name].shape, arrays[name].dtype, stored[name]
        dtypes = DTYPES if dtype in DTYPES else (dtype,)
        if not isinstance(array, ArrayMetadata):
            problems.append(f"{name} is no array")
        elif array.shape != shape:
            problems.append(f"{name} has shape {list(array.shape)}, the model asks for {list(shape)}")
        elif array.dtype not in dtypes:
            problems.append(f"{name} holds {array.dtype}, not one of {', '.join(map(str, dtypes))}")
        elif array.storage and math.prod(array.storage.chunk_shape or ()) > math.prod(shape):
            problems.append(f"{name} has chunks larger than itself")
    if problems:
        raise BadCheckpoint(path, "holds another model's weights; convert the model again", *sorted(problems))
