"""An adapter as it was before training, for initialisations that take it out of the base: PiSSA, OLoRA, CorDA.

With A0 and B0 at the start, the base is trained as W - B0 A0, so an adapter changes W by B A - B0 A0. That is of twice
the rank: [A; A - A0] and [B - B0, B0], which loses little where it is rounded, as the large parts have cancelled out.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.adapter.config import read_config
from convert.adapter.directory import CONFIG, weights_path
from convert.adapter.keys import Target
from convert.adapter.layers import Layer, Layers, find_layers
from openlora_jax.adapters.manifest import MAX_RANK
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.config import ModelConfig
from openlora_jax.safetensors_file import SafetensorsFile


@dataclass(frozen=True, slots=True)
class Initial:
    """What the adapter was: its file, and the layers of that by their targets."""

    file: SafetensorsFile
    layers: Mapping[Target, Layer]


@contextmanager
def opened_initial(source: Path, trained: Layers, model: ModelConfig) -> Iterator[Initial]:
    """Opens the directory of an adapter before training.

    Args:
        source: the directory.
        trained: what the adapter is now.
        model: of the base.

    Raises:
        BadCheckpoint: it is malformed, or other modules, ranks or scales than those now; twice the rank is too much.
        UnsupportedFeature: the adapter is more than low-rank factors.
    """
    if trained.rows or any(layer.vector for layer in trained.layers):
        raise UnsupportedFeature(
            source, "an initial adapter beside DoRA, lora_bias or token rows", "leave --initial out"
        )
    config, _ = read_config(source / CONFIG, relative=True)
    path = weights_path(source)
    with SafetensorsFile(path) as file:
        before = {layer.target: layer for layer in find_layers(path, file.tensors, config, model).layers}
        now = {layer.target: layer for layer in trained.layers}
        if before.keys() != now.keys():
            raise BadCheckpoint(path, "has other modules than the trained adapter")
        for target, layer in now.items():
            if (before[target].rank, before[target].scale) != (layer.rank, layer.scale):
                raise BadCheckpoint(path, f"{target.name} has another rank or scale than in the trained adapter")
            if 2 * layer.rank > MAX_RANK:
                raise BadCheckpoint(
                    path, f"{target.name} has rank {layer.rank}, and twice of that is more than {MAX_RANK}"
                )
        yield Initial(file, before)
