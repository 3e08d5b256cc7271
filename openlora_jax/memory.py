"""What an engine will hold on its device, in bytes, before any of it is allocated."""

import math
import os
from dataclasses import dataclass

import jax
import numpy as np

from openlora_jax.adapters.modules import module_shapes
from openlora_jax.adapters.pages import pool_capacities
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import weight_table


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes by what they are for; activations come on top, and are small beside them.

    Attributes:
        pools: module name -> its rank pages.
        sampler: token counts, prompt tokens and bias of every slot.
    """

    weights: int
    kv: int
    pools: dict[str, int]
    sampler: int

    @classmethod
    def of(cls, engine: EngineConfig, model: ModelConfig) -> "MemoryPlan":
        """The plan of an engine with these settings for this model."""
        itemsize = 4 if engine.dtype == "float32" else 2
        kv_token = 2 * model.num_layers * model.kv_size
        capacities = pool_capacities(engine)
        return cls(
            weights=itemsize * sum(math.prod(weight.shape) for weight in weight_table(model).values()),
            kv=itemsize * engine.kv_blocks * engine.kv_block * kv_token,
            pools={
                module: itemsize * capacities[module] * shape.page_elements
                for module, shape in module_shapes(model).items()
            },
            sampler=(engine.max_rows + 1) * model.vocab_size * (np.dtype("i4").itemsize + np.dtype("f4").itemsize + 1),
        )

    @property
    def total(self) -> int:
        return self.weights + self.kv + sum(self.pools.values()) + self.sampler

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "KV blocks": self.kv,
            "adapter pages": sum(self.pools.values()),
            "the sampler": self.sampler,
        }
        return f"{_mb(self.total)} MB ({', '.join(f'{_mb(size)} for {name}' for name, size in parts.items())})"

    def check(self, available: int) -> None:
        """Raises InvalidConfig if it is more than `available` bytes."""
        if self.total > available:
            raise InvalidConfig(
                "memory",
                f"the engine would hold {self}, the device has {_mb(available)}; lower kv_blocks or pool_pages",
            )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def device_memory() -> int:
    """Bytes that JAX may hold on the default device: of a CPU, this machine's memory."""
    limits = jax.devices()[0].memory_stats() or {}
    return int(limits["bytes_limit"]) if "bytes_limit" in limits else host_memory()


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
