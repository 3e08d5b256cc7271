"""The linear modules that an adapter may target, under PEFT's names for them, and the pages that it has of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from openlora_jax.model.config import ModelConfig

PAGE_RANK = 16
"""Ranks in a rank page: the least K of a tensor-core dot, and a multiple of every vector width."""

MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "embed_tokens",
    "lm_head",
)
"""Every targetable module, in the order that pools and work lists are stored in."""

VECTORS = tuple(f"{module}.vector" for module in MODULES)
"""The pools of vector pages, of the modules in their order."""

INT4 = tuple(f"{module}.int4" for module in MODULES if module not in ("embed_tokens", "lm_head"))
"""The pools of rank pages in 4 bits, of the layers' modules in their order."""

INT4_COLUMNS = 64
"""The widths of a module that has such pages are multiples of it."""

Saveable = Literal["embed_tokens", "lm_head"]
SAVEABLE: tuple[Saveable, ...] = ("embed_tokens", "lm_head")
"""The modules of which an adapter may have a matrix of its own (`modules_to_save`)."""

SAVED = tuple(f"{module}.saved" for module in SAVEABLE)
"""The pools of these matrices, of the modules in their order."""

POOLS = (*MODULES, *VECTORS, *INT4, *SAVED)
"""Every pool: of a module's rank pages, under its own name, of its vector pages, of its rank pages in 4 bits and of its
saved ones."""

_PARENTS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """The size of one module: `layers` copies of a `d_in -> d_out` product (embedding and head exist once)."""

    layers: int
    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True)
class PageShape:
    """One page of a pool, over all layers.

    Attributes:
        parts: its tensors by name: (rows, width) of each layer. A rank page is `MODULE.A`, 16 by the width in, and
            `MODULE.B`, 16 by the width out; a vector page `MODULE.vector`, whose rows are a gain, less 1, and a bias;
            a saved page `MODULE.saved`, the whole matrix, a row for each token of the vocabulary.
        int4: its numbers are held in 4 bits, with a scale of 16 bits for every 32; see `Int4Pages`.
    """

    layers: int
    parts: Mapping[str, tuple[int, int]]
    int4: bool = False

    def nbytes(self, itemsize: int) -> int:
        """Of one page, where a number that is not in 4 bits takes `itemsize` bytes."""
        elements = self.layers * sum(rows * width for rows, width in self.parts.values())
        return elements * 9 // 16 if self.int4 else elements * itemsize


def module_shapes(config: ModelConfig) -> dict[str, ModuleShape]:
    """The shape of every module of `MODULES`, in that order."""
    layers, hidden, mlp = config.num_layers, config.hidden_size, config.intermediate_size
    return {
        "q_proj": ModuleShape(layers, hidden, config.q_size),
        "k_proj": ModuleShape(layers, hidden, config.kv_size),
        "v_proj": ModuleShape(layers, hidden, config.kv_size),
        "o_proj": ModuleShape(layers, config.q_size, hidden),
        "gate_proj": ModuleShape(layers, hidden, mlp),
        "up_proj": ModuleShape(layers, hidden, mlp),
        "down_proj": ModuleShape(layers, mlp, hidden),
        "embed_tokens": ModuleShape(1, config.vocab_size, hidden),
        "lm_head": ModuleShape(1, hidden, config.vocab_size),
    }


def page_shape(pool: str, module: ModuleShape) -> PageShape:
    """A page of one of the pools of a module of that shape."""
    if pool in VECTORS:
        return PageShape(module.layers, {pool: (2, module.d_out)})
    if pool in SAVED:
        embeds = module_of(pool) == "embed_tokens"
        return PageShape(1, {pool: (module.d_in, module.d_out) if embeds else (module.d_out, module.d_in)})
    name = module_of(pool)
    parts = {f"{name}.A": (PAGE_RANK, module.d_in), f"{name}.B": (PAGE_RANK, module.d_out)}
    return PageShape(module.layers, parts, int4=pool in INT4)


def page_shapes(config: ModelConfig) -> dict[str, PageShape]:
    """The pages of every pool that a model can have, in the order of `POOLS`.

    Modules that read the same input have pages in 4 bits together, as they are one call, so all have them or none.
    """
    modules = module_shapes(config)
    shapes = {pool: page_shape(pool, modules[module_of(pool)]) for pool in POOLS}
    widths = [width for pool in INT4 for _, width in shapes[pool].parts.values()]
    packable = not any(width % INT4_COLUMNS for width in widths)
    return {pool: shape for pool, shape in shapes.items() if packable or not shape.int4}


def module_of(pool: str) -> str:
    """Whose pages a pool holds."""
    return pool.partition(".")[0]


def module_name(module: str, layer: int) -> str:
    """The full name of one module of one layer in a Hugging Face model; embedding and head have the layer 0 alone."""
    if module == "lm_head":
        return module
    return f"model.layers.{layer}.{_PARENTS[module]}.{module}" if module in _PARENTS else f"model.{module}"
