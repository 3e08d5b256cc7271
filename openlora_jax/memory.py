"""What an engine will hold on its device, in bytes, before any of it is allocated.

The weights and the sampler are what they are. What is left of the budget is divided between the adapters' pages and the
KV cache: half and half in terms of the default counts, `pool_pages` for `kv_blocks`, unless the last start was short of
one of the two and not of the other. Counts that a configuration sets are what they are too. A start that follows one
which lacked nothing holds the same, so that its programs need not be compiled again.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from sys import maxsize

import jax
import numpy as np

from openlora_jax.adapters.demand import UNKNOWN, Demand, divide, least_pages, pool_bytes, steady
from openlora_jax.adapters.modules import INT4, MODULES, SAVED, VECTORS, page_shapes
from openlora_jax.adapters.pages import CAPACITY_KEYS, pool_capacities, spared
from openlora_jax.config import EngineConfig
from openlora_jax.engine.kv_blocks import blocks_for
from openlora_jax.errors import InvalidConfig
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.stored import weight_bytes
from openlora_jax.observed import Observed, Planned
from pallas_kernels.kv_cache import kv_bytes
from pallas_kernels.registry import PLATFORMS
from pallas_kernels.triton_limits import WRAPPED

SLACK = 5 / 4
"""What was observed is planned for with so much more."""

STORED = 2
"""A page that is written is on the device once more, as it is stored: in float32 twice what one of bfloat16 takes."""

PLANNED = 0.96
"""Of what JAX may hold of a device with memory of its own: the rest is lost between arrays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes by what they are for, and the counts behind them.

    Attributes:
        kv_blocks: the scratch block included.
        block_tokens: of a KV block.
        kv_dtype: of keys and values, where it is not that of the weights.
        pages: pool -> its pages, the zero page included; a pool that has none is left out.
        pools: pool -> bytes of its pages.
        sampler: token counts, prompt tokens and bias of every slot.
        activations: what a step, or the write of a page, holds beside these at its height, estimated or observed.
        basis: the settings that it is made for.
    """

    basis: str
    weights: int
    kv: int
    kv_blocks: int
    block_tokens: int
    kv_dtype: str | None
    pages: dict[str, int]
    pools: dict[str, int]
    sampler: int
    activations: int

    @classmethod
    def of(
        cls,
        engine: EngineConfig,
        model: ModelConfig,
        demand: Demand = UNKNOWN,
        observed: Observed | None = None,
        budget: int | None = None,
    ) -> "MemoryPlan":
        """The plan of an engine with these settings for this model.

        Args:
            engine: its counts are taken as they are where they were set; else they say what is held without a budget.
            model: the base model.
            demand: the adapters that may be asked for.
            observed: the load of the last start.
            budget: bytes to stay within, everything included; None for no more than the default counts take.
        """
        sizes, basis = Sizes.of(engine, model, observed), _basis(engine, budget)
        demand = demand.placed({pool: _fixed(engine).get(pool, maxsize) - 1 for pool in sizes.pages})
        kept = observed.planned if observed and observed.planned and observed.planned.basis == basis else None
        if kept and observed and _suffices(kept, observed, sizes, demand, budget):
            pages, blocks = kept.pages, kept.kv_blocks
        else:
            pages, blocks = _counts(engine, sizes, demand, observed, budget)
            if not demand.pages.keys().isdisjoint(SAVED) and not any(map(pages.get, SAVED)):  # then none is written
                pages, blocks = _counts(engine, sizes, demand.without_saved, observed, budget)
        pages = {pool: count for pool, count in pages.items() if count}
        return cls(
            basis=basis,
            weights=sizes.weights,
            kv=blocks * sizes.block,
            kv_blocks=blocks,
            block_tokens=engine.kv_block,
            kv_dtype=engine.kv_dtype,
            pages=pages,
            pools={module: count * sizes.pages[module] for module, count in pages.items()},
            sampler=sizes.sampler,
            activations=sizes.beside(pages),
        )

    @property
    def kv_name(self) -> str:
        return f"KV blocks of {self.block_tokens} tokens{f' in {self.kv_dtype}' if self.kv_dtype else ''}"

    @property
    def held(self) -> int:
        """From the start to the end."""
        return self.weights + self.kv + sum(self.pools.values()) + self.sampler

    @property
    def total(self) -> int:
        return self.held + self.activations

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            f"{self.kv_blocks} {self.kv_name}": self.kv,
            f"adapter pages, {_by_count(self.pages)}": sum(self.pools.values()),
            "the sampler": self.sampler,
            "activations": self.activations,
        }
        return f"{_mb(self.total)} MB ({'; '.join(f'{_mb(size)} for {name}' for name, size in parts.items())})"

    def check(self, available: int) -> None:
        """Raises InvalidConfig if it is more than `available` bytes."""
        if self.total > available:
            raise InvalidConfig(
                "memory",
                f"the engine would hold {self}, where {_mb(available)} MB may be held; lower kv_blocks or pool_pages,"
                " max_rows or max_model_len, or choose a smaller base model",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Bytes of what is counted, and of what is there once.

    Attributes:
        block: one KV block.
        unreached: numbers of KV blocks that the backend's kernels do not address right.
        pages: pool -> one page.
    """

    weights: int
    sampler: int
    activations: int
    block: int
    unreached: range
    pages: dict[str, int]

    @classmethod
    def of(cls, engine: EngineConfig, model: ModelConfig, observed: Observed | None) -> "Sizes":
        itemsize = 4 if engine.dtype == "float32" else 2
        seen = observed.activations if observed else None
        return cls(
            weights=weight_bytes(model, engine.dtype),
            sampler=(engine.max_rows + 1) * model.vocab_size * (np.dtype("i4").itemsize + np.dtype("f4").itemsize + 1),
            activations=_activations(engine, model) if seen is None else int(SLACK * seen),
            block=engine.kv_block
            * model.num_layers
            * model.num_kv_heads
            * kv_bytes(dtype=engine.kv_dtype or engine.dtype, width=model.head_dim),
            unreached=_unreached(engine, model),
            pages={pool: shape.nbytes(itemsize) for pool, shape in page_shapes(model).items()},
        )

    def beside(self, pools: Mapping[str, int]) -> int:
        """Activations, or the copy of a page while it is written to one of these pools: of saved ones it is large."""
        return max([self.activations, *(STORED * self.pages[pool] for pool in SAVED if pools.get(pool))])


def _activations(engine: EngineConfig, model: ModelConfig) -> int:
    """An upper estimate: a few copies of the widest arrays of a step, in float32."""
    tiles = engine.prefill_chunk // engine.prefill_tile
    logits = 4 * max(engine.max_rows, tiles) * model.vocab_size
    token = 4 * model.hidden_size + 3 * model.intermediate_size + 2 * (model.q_size + 2 * model.kv_size)
    largest = 2 * model.intermediate_size * model.hidden_size  # gate and up, whose numbers may be made at once
    numbers = largest if model.quantization else 0
    return 4 * (logits + engine.prefill_chunk * token + numbers)


def _unreached(engine: EngineConfig, model: ModelConfig) -> range:
    """Numbers of KV blocks whose codes Triton's kernel addresses wrongly; interpreted, it refuses them as well."""
    if engine.kv_dtype != "int8" or (engine.backend != "interpret" and _platform(engine.backend) != "gpu"):
        return range(0)
    codes = engine.kv_block * model.num_layers * model.kv_size
    return range((WRAPPED.start - 1) // codes + 1, (WRAPPED.stop - 1) // codes + 1)


def _platform(backend: str) -> str:
    return PLATFORMS.get(backend) or str(jax.devices()[0].platform)


def _basis(engine: EngineConfig, budget: int | None) -> str:
    """All settings that the counts depend on."""
    sizes = ("dtype", "kv_dtype", "max_rows", "prefill_tile", "prefill_chunk", "max_model_len", "kv_block")
    given = sorted(engine.model_fields_set & {"kv_blocks", *CAPACITY_KEYS.values()})
    return " ".join(f"{key}={getattr(engine, key)}" for key in (*sizes, *given)) + f" budget={budget}"


def _suffices(kept: Planned, observed: Observed, sizes: Sizes, demand: Demand, budget: int | None) -> bool:
    """Whether the last plan left nobody short, has room for all that is registered now, and is within the budget."""
    if observed.preemptions or observed.evictions or not kept.pages.keys() <= sizes.pages.keys():
        return False
    if kept.kv_blocks in sizes.unreached:  # of another backend
        return False
    held = sizes.weights + sizes.sampler + kept.kv_blocks * sizes.block + pool_bytes(kept.pages, sizes.pages)
    fits = all(spared(pool) + count <= kept.pages.get(pool, 0) for kind in demand.kinds for pool, count in kind)
    return fits and (budget is None or held + sizes.beside(kept.pages) <= budget)


def _counts(
    engine: EngineConfig, sizes: Sizes, demand: Demand, observed: Observed | None, budget: int | None
) -> tuple[dict[str, int], int]:
    """Pages of every pool that has any, and KV blocks.

    Raises:
        InvalidConfig: the settings ask for a number of blocks that the backend's kernels do not reach.
    """
    fixed = _fixed(engine)
    page_bytes = _page_bytes(engine, sizes, demand)
    asked = {pool: count for pool, count in pool_capacities(engine).items() if pool in page_bytes}
    kv, pool = engine.kv_blocks * sizes.block, pool_bytes(asked, sizes.pages)
    left = kv + pool if budget is None else budget - sizes.weights - sizes.sampler - sizes.beside(page_bytes)
    if "kv_blocks" in engine.model_fields_set:
        _check_reach(engine.kv_blocks, sizes.unreached)
        return divide(demand, page_bytes, fixed, left - kv), engine.kv_blocks
    room = left * pool // (kv + pool)
    if observed:
        room = _as_observed(observed, room, left, sizes.block // engine.kv_block)
    least_kv = min(1 + blocks_for(engine.max_model_len, engine.kv_block), engine.kv_blocks) * sizes.block
    least_pool = pool_bytes(least_pages(demand, page_bytes, fixed, left - least_kv), page_bytes)
    room = min(max(room, least_pool), left - least_kv)
    if _blocks(left - room, sizes) in sizes.unreached:  # pages get what KV blocks cannot use
        room = left - (sizes.unreached.start - 1) * sizes.block
    pages = divide(demand, page_bytes, fixed, room)
    blocks = _blocks(left - pool_bytes(pages, page_bytes), sizes)
    if blocks in sizes.unreached:
        blocks = sizes.unreached.start - 1
    if budget is None and not (observed and observed.preemptions):
        blocks = min(blocks, engine.kv_blocks)  # nobody asked for more, and nobody missed it
    return pages, blocks


def _blocks(room: int, sizes: Sizes) -> int:
    """KV blocks in so many bytes, the scratch block included."""
    return max(2, 1 + steady(room // sizes.block - 1))


def _check_reach(blocks: int, unreached: range) -> None:
    if blocks in unreached:
        problem = (
            f"{blocks} in int8 have keys of 2 to 4 GiB, which GPUs address wrongly;"
            f" {unreached.start - 1} at most, or from {unreached.stop} on"
        )
        raise InvalidConfig("kv_blocks", problem)


def _fixed(engine: EngineConfig) -> dict[str, int]:
    """Pages of the pools whose count was set."""
    given = engine.model_fields_set
    return {pool: count for pool, count in pool_capacities(engine).items() if CAPACITY_KEYS[pool] in given}


def _page_bytes(engine: EngineConfig, sizes: Sizes, demand: Demand) -> dict[str, int]:
    """Of every pool that there is to be: of all kinds but rank pages where an adapter has one, or the settings ask."""
    wanted = demand.pages.keys()
    vectors = VECTORS if engine.vector_pages is not None or not wanted.isdisjoint(VECTORS) else ()
    int4 = INT4 if engine.int4_pages is not None or not wanted.isdisjoint(INT4) else ()
    saved = wanted & set(SAVED) or (SAVED if engine.saved_pages is not None else ())
    return {pool: size for pool, size in sizes.pages.items() if pool in (*MODULES, *vectors, *int4, *saved)}


def _as_observed(observed: Observed, room: int, left: int, token: int) -> int:
    """Bytes of the pool: who was short gets what the other never used, though no more than half of the other's."""
    if observed.preemptions and not observed.evictions:
        return max(room // 2, min(room, int(SLACK * observed.pool_bytes)))
    if observed.evictions and not observed.preemptions:
        return left - max((left - room) // 2, min(left - room, int(SLACK * observed.kv_tokens) * token))
    return room


def _by_count(pages: dict[str, int]) -> str:
    """Such as `65 of q_proj, v_proj and 17 of k_proj`."""
    by_count: dict[int, list[str]] = {}
    for module, count in pages.items():
        by_count.setdefault(count, []).append(module)
    return " and ".join(f"{count} of {', '.join(modules)}" for count, modules in sorted(by_count.items(), reverse=True))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def device_memory() -> int:
    """Bytes that JAX may hold on the default device: of a CPU, this machine's memory."""
    return _limit() or host_memory()


def memory_budget(engine: EngineConfig) -> int | None:
    """Bytes to plan for: those that the settings give, else all that JAX may hold of a device with its own memory.

    Raises:
        InvalidConfig: the device has less than the settings give.
    """
    available = device_memory()
    if engine.device_memory is None:
        limit = _limit()
        return None if limit is None else int(PLANNED * limit)
    if engine.device_memory > available:
        problem = (
            f"{_mb(engine.device_memory)} MB are more than the {_mb(available)} MB that JAX may hold here; lower it, or"
            " raise XLA_CLIENT_MEM_FRACTION"
        )
        raise InvalidConfig("device_memory", problem)
    return engine.device_memory


def _limit() -> int | None:
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(limit)


def observed_activations(plan: MemoryPlan) -> int | None:
    """Bytes that the default device has held beyond a plan, at most; None where it does not say."""
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else max(0, int(peak) - plan.held)


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
