"""The linear modules of a base model that an adapter may target, under PEFT's names for them."""

from dataclasses import dataclass

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

    @property
    def page_elements(self) -> int:
        """Elements of one rank page of this module, A and B together, over all layers."""
        return self.layers * PAGE_RANK * (self.d_in + self.d_out)


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


def module_name(module: str, layer: int) -> str:
    """The full name of one module of one layer in a Hugging Face model; embedding and head have the layer 0 alone."""
    if module == "lm_head":
        return module
    return f"model.layers.{layer}.{_PARENTS[module]}.{module}" if module in _PARENTS else f"model.{module}"
