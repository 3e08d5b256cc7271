"""What the kernels are measured on: a model's sizes, a batch, and who in it asks for which adapter."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openlora_jax.adapters.modules import PAGE_RANK
from openlora_jax.bench.models import LLAMA_8B, SMOLLM2_135M
from openlora_jax.config import Dtype
from openlora_jax.model.config import ModelConfig

GROUPS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""The modules that share an input, and so one call."""

SHAPES: Mapping[str, ModelConfig] = {"smollm2": SMOLLM2_135M, "llama-3.1-8b": LLAMA_8B}
KINDS = ("decode", "prefill")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What every op runs.

    Attributes:
        shape: a name of `SHAPES`.
        dtype: of all operands.
        rows: sequences of a decode step.
        prefill: tokens of a prefill step, a whole number of tiles.
        tile: tokens that a prefill computes together.
        context: positions that attention sees, a whole number of KV blocks; the prefill is the last of them.
        kv_block: positions of a KV block.
        ranks: of the adapters, in turn; the first is the most popular one's.
        groups: names of `GROUPS`.
        rounds: each runs every implementation once.
    """

    shape: str
    dtype: Dtype
    rows: int
    prefill: int
    tile: int
    context: int
    kv_block: int
    ranks: tuple[int, ...] = (64, 32, 16, 8)
    groups: tuple[str, ...]
    rounds: int

    @classmethod
    def default(cls, platform: str) -> "Workload":
        """Two minutes' work for a CPU; for others what fills them."""
        if platform == "cpu":
            return cls(
                shape="smollm2",
                dtype="float32",
                rows=16,
                prefill=128,
                tile=16,
                context=512,
                kv_block=32,
                groups=("qkv",),
                rounds=5,
            )
        return cls(
            shape="llama-3.1-8b",
            dtype="bfloat16",
            rows=64,
            prefill=2048,
            tile=64,
            context=2048,
            kv_block=64,
            groups=tuple(GROUPS),
            rounds=7,
        )

    @property
    def model(self) -> ModelConfig:
        return SHAPES[self.shape]

    def tiles(self, kind: str) -> tuple[int, int]:
        """Tiles of a step, and their tokens; `kind` is one of `KINDS`."""
        return (self.rows, 1) if kind == "decode" else (self.prefill // self.tile, self.tile)

    def pages(self, adapter: int) -> int:
        """Rank pages of one module of an adapter, numbered by popularity."""
        return -(-self.ranks[adapter % len(self.ranks)] // PAGE_RANK)


def distinct(count: int) -> list[int]:
    """An adapter each."""
    return list(range(count))


def uniform(count: int) -> list[int]:
    """About sqrt(count) adapters, each as popular as the others."""
    adapters = math.ceil(math.sqrt(count))
    return sorted(index % adapters for index in range(count))


def skewed(count: int) -> list[int]:
    """Each adapter 1.5 times as popular as the next."""
    sizes = [1.0]
    while sum(map(int, sizes)) < count:
        sizes.append(1.5 * sizes[-1])
    popular_first = [adapter for adapter, size in enumerate(reversed(sizes)) for _ in range(int(size))]
    return popular_first[:count]


def identical(count: int) -> list[int]:
    """One adapter for all."""
    return [0] * count


MIXES: Mapping[str, Callable[[int], list[int]]] = {
    each.__name__: each for each in (distinct, uniform, skewed, identical)
}
"""The adapters of `count` tiles, numbered by popularity: those of Punica (Chen et al. 2023, arXiv:2310.18547)."""
