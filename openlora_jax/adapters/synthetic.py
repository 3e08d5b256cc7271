"""Adapters of random numbers: any number of them, each its own, for benchmarks and tests."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from openlora_jax.adapters.artifact import (
    CHUNK,
    DTYPES,
    MANIFEST,
    Tensor,
    Tensors,
    artifact_digest,
    read_artifact,
    tensor_folder,
)
from openlora_jax.adapters.few_bits import Rounding, in_few_bits
from openlora_jax.adapters.manifest import LowRank, Manifest
from openlora_jax.adapters.modules import PAGE_RANK, module_shapes
from openlora_jax.adapters.seal import Seal
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import Dtype
from openlora_jax.model.config import ModelConfig


def synthetic_manifest(
    config: ModelConfig, base_digest: str, modules: Sequence[str], rank: int, dtype: Dtype = "float32"
) -> Manifest:
    """The manifest of an adapter with one rank on every layer of `modules`."""
    shapes = module_shapes(config)
    sizes = {module: shapes[module] for module in modules}
    return Manifest(
        base_digest=base_digest,
        dtype=dtype,
        modules={
            module: LowRank(layers=size.layers, d_in=size.d_in, d_out=size.d_out, rank=rank)
            for module, size in sizes.items()
        },
    )


def synthetic_tensors(
    config: ModelConfig, modules: Sequence[str], rank: int, seed: int, scale: float = 0.1
) -> dict[str, Tensor]:
    """The float32 tensors of an artifact, a function of the arguments alone.

    `scale` is the root mean square of a module's delta where its input has a root mean square of 1.
    """
    rng = np.random.default_rng(seed)
    shapes = module_shapes(config)
    pages = -(-rank // PAGE_RANK)
    tensors = {}
    for module in modules:
        size = shapes[module]
        for factor, width, deviation in (("A", size.d_in, size.d_in**-0.5), ("B", size.d_out, scale * rank**-0.5)):
            tensor = np.zeros((size.layers, pages * PAGE_RANK, width), np.float32)
            tensor[:, :rank] = rng.standard_normal((size.layers, rank, width), np.float32) * np.float32(deviation)
            tensors[f"{module}.{factor}"] = tensor.reshape(size.layers, pages, PAGE_RANK, width)
    return tensors


def install_synthetic(
    store: AdapterStore,
    config: ModelConfig,
    base_digest: str,
    seeds: Mapping[str, int],
    *,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    rank: int = 8,
    scale: float = 0.1,
    dtype: Dtype = "float32",
    few_bits: Rounding | None = None,
) -> dict[str, str]:
    """Installs one adapter for every name in `seeds`, rounded to `few_bits` if so; returns the digests by name.

    Only the first is written as every other adapter is. The rest are copies of its files with other numbers, which are
    not waited for until they are on the disk: 2,000 take seconds instead of minutes.
    """
    plain = synthetic_manifest(config, base_digest, modules, rank, dtype)
    digests: dict[str, str] = {}
    for name, seed in seeds.items():
        wide = synthetic_tensors(config, modules, rank, seed, scale)
        manifest, tensors = plain, {key: tensor.astype(DTYPES[dtype], copy=False) for key, tensor in wide.items()}
        if few_bits:
            manifest, tensors = in_few_bits(manifest, tensors, few_bits)
        if not digests:
            template = store.folder(store.install(name, manifest, tensors))
        digests[name] = artifact_digest(manifest, tensors)
        with store.changing():  # another process's install deletes what lies half-written in the store
            if not store.folder(digests[name]).exists():
                _copy(template, store.folder(digests[name]), manifest, tensors)
    store.register(digests)
    return digests


def _copy(template: Path, folder: Path, manifest: Manifest, tensors: Tensors) -> None:
    scratch = folder.with_name(f".{folder.name}")
    shutil.copytree(template, scratch, ignore=shutil.ignore_patterns(CHUNK))
    (scratch / MANIFEST).write_text(json.dumps(manifest.to_fields()))
    for name, tensor in tensors.items():
        tensor.tofile(tensor_folder(scratch, name) / CHUNK)
    Seal.of(folder.name, read_artifact(scratch)).write(scratch)
    scratch.rename(folder)
