"""What is compared with peft and transformers: small random base models, an adapter per PEFT feature, mixes."""

from dataclasses import dataclass, field
from typing import Any, Literal

VOCABULARY = 320
LENGTHS = ((1, 12), (15, 5), (16, 16), (33, 8), (5, 1), (70, 20), (150, 10))
"""Prompt and completion lengths of the rows that every case scores: below, at and above multiples of 16."""

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass(frozen=True, kw_only=True)
class BaseCase:
    """A base model: transformers' `model_type` and what its configuration says beside the common sizes.

    Attributes:
        stored: dtype of the tensors in the file.
        shards: whether the file is split, with an index.
        legacy_config: whether `config.json` is as transformers 4 had it (`rope_theta`, `rope_scaling`, `torch_dtype`).
    """

    family: str
    config: dict[str, Any]
    stored: Literal["float32", "bfloat16"] = "float32"
    shards: bool = False
    legacy_config: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        return _SMALL | self.config


@dataclass(frozen=True, kw_only=True)
class AdapterCase:
    """An adapter: its base and the arguments of peft's LoraConfig.

    Attributes:
        stored: dtype of the tensors in the file.
        old_config: whether `adapter_config.json` holds only what peft 0.3 wrote.
        embedding_keys_only: whether the head's tensors, the embedding's in a tied adapter, are left out of the file.
    """

    config: dict[str, Any]
    base: str = "llama"
    stored: Literal["float32", "bfloat16", "float16"] = "float32"
    old_config: bool = False
    embedding_keys_only: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether it can be part of no mix, nor have another weight than 1."""
        return bool(self.config.get("use_dora") or self.config.get("modules_to_save"))


@dataclass(frozen=True, kw_only=True)
class MixCase:
    """A weighted mix of adapters of one base."""

    adapters: dict[str, float] = field(default_factory=dict)
    base: str = "llama"


@dataclass(frozen=True, kw_only=True)
class EnsembleCase:
    """Mixes that choose each token together; an empty one is the base."""

    members: tuple[dict[str, float], ...]
    weights: tuple[float, ...]
    method: Literal["mean_logits", "mean_probs"]
    base: str = "llama"


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

BASES: dict[str, BaseCase] = {
    "llama": BaseCase(family="llama", config={"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama_tied": BaseCase(family="llama", config={"tie_word_embeddings": True}, stored="bfloat16"),
    "llama3": BaseCase(
        family="llama",
        config={"tie_word_embeddings": True, "num_hidden_layers": 3, "rope_parameters": _LLAMA3},
        stored="bfloat16",
        legacy_config=True,
    ),
    "llama_linear": BaseCase(
        family="llama",
        config={
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        stored="bfloat16",
    ),
    "mistral": BaseCase(
        family="mistral",
        config={"tie_word_embeddings": False, "head_dim": 32, "sliding_window": None, "rms_norm_eps": 1e-2},
        stored="bfloat16",
    ),
    "qwen2": BaseCase(family="qwen2", config={"tie_word_embeddings": True, "num_key_value_heads": 1}, shards=True),
    "qwen3": BaseCase(
        family="qwen3",
        config={
            "tie_word_embeddings": False,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        stored="bfloat16",
    ),
    "qwen3_tied": BaseCase(
        family="qwen3", config={"tie_word_embeddings": True, "head_dim": 16, "num_key_value_heads": 4}, shards=True
    ),
}

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
QV = ["q_proj", "v_proj"]

ADAPTERS: dict[str, AdapterCase] = {
    # Ranks: below, at and above a multiple of 16.
    "rank_1": AdapterCase(config={"r": 1, "lora_alpha": 2, "target_modules": QV}),
    "rank_2": AdapterCase(config={"r": 2, "lora_alpha": 2, "target_modules": ["k_proj", "o_proj"]}),
    "rank_8": AdapterCase(config={"r": 8, "lora_alpha": 16, "target_modules": QV}),
    "rank_16": AdapterCase(config={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}),
    "rank_17": AdapterCase(config={"r": 17, "lora_alpha": 3, "target_modules": ATTENTION}),
    "rank_33": AdapterCase(config={"r": 33, "lora_alpha": 33, "target_modules": ["down_proj"]}),
    "rank_64": AdapterCase(
        config={"r": 64, "lora_alpha": 64, "target_modules": ["gate_proj", "up_proj"]}, stored="bfloat16"
    ),
    "rank_128": AdapterCase(config={"r": 128, "lora_alpha": 64, "target_modules": ["v_proj"]}, stored="bfloat16"),
    # Scales.
    "alpha_negative": AdapterCase(config={"r": 4, "lora_alpha": -8, "target_modules": QV}),
    "alpha_fraction": AdapterCase(config={"r": 4, "lora_alpha": 2.5, "target_modules": QV}),
    "rslora": AdapterCase(config={"r": 32, "lora_alpha": 8, "use_rslora": True, "target_modules": QV}),
    "pattern_suffix": AdapterCase(
        config={
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ATTENTION,
            "rank_pattern": {"k_proj": 3, "self_attn.o_proj": 20},
            "alpha_pattern": {"q_proj": 64, "o_proj": -5},
        }
    ),
    "pattern_regex": AdapterCase(
        config={
            "r": 8,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            # The first key that matches wins: the second is for the q_proj of layer 1 alone.
            "rank_pattern": {r"layers\.0\.self_attn\.[qk]_proj": 24, "q_proj": 2, r".*mlp\..*": 5},
            "alpha_pattern": {r"model\.layers\.1\..*": 40, r"(up|down)_proj": 3},
        }
    ),
    "pattern_rslora": AdapterCase(
        config={
            "r": 8,
            "lora_alpha": 16,
            "use_rslora": True,
            "target_modules": QV,
            "rank_pattern": {"v_proj": 18},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 4},
        }
    ),
    # Targets.
    "target_regex": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.\d+\.self_attn\.(q|o)_proj"}
    ),
    "target_absent": AdapterCase(config={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "c_attn"]}),
    "exclude_modules": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "exclude_modules": r".*\.(k_proj|0\..*)"}
    ),
    "layers_to_transform": AdapterCase(
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": QV,
            "layers_to_transform": [1],
            "layers_pattern": "layers",
        }
    ),
    # Embedding and head.
    "embed": AdapterCase(config={"r": 8, "lora_alpha": 8, "target_modules": ["embed_tokens"]}),
    "head": AdapterCase(config={"r": 8, "lora_alpha": 16, "target_modules": ["lm_head", "q_proj"]}),
    "embed_head": AdapterCase(
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["embed_tokens", "lm_head"],
            "rank_pattern": {"lm_head": 18},
            "alpha_pattern": {"embed_tokens": 3},
        },
        stored="bfloat16",
    ),
    "tied_embed": AdapterCase(
        base="llama_tied", config={"r": 8, "lora_alpha": 8, "target_modules": ["embed_tokens", "v_proj"]}
    ),
    "tied_head": AdapterCase(base="llama_tied", config={"r": 8, "lora_alpha": 8, "target_modules": ["lm_head"]}),
    "tied_both": AdapterCase(
        base="llama_tied",
        stored="bfloat16",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head"]},
    ),
    "tied_ensured": AdapterCase(
        base="llama_tied",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        embedding_keys_only=True,
    ),
    "tied_ensured_head": AdapterCase(
        base="llama_tied",
        stored="bfloat16",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "o_proj"], "ensure_weight_tying": True},
    ),
    # Initialisations that are plain LoRA once saved.
    "init_gaussian": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "init_lora_weights": "gaussian"}
    ),
    "init_eva": AdapterCase(config={"r": 6, "lora_alpha": 12, "target_modules": ATTENTION, "init_lora_weights": "eva"}),
    "init_orthogonal": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "init_lora_weights": "orthogonal"}
    ),
    "init_mica": AdapterCase(config={"r": 4, "lora_alpha": 8, "target_modules": QV, "init_lora_weights": "mica"}),
    "init_pissa_converted": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "init_lora_weights": "pissa"}
    ),
    # Files.
    "stored_float16": AdapterCase(config={"r": 4, "lora_alpha": 8, "target_modules": QV}, stored="float16"),
    "old_config": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": QV}, old_config=True
    ),
    # The other families.
    "llama3_all": AdapterCase(base="llama3", config={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "mistral_all": AdapterCase(base="mistral", config={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "qwen2_all": AdapterCase(base="qwen2", config={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "qwen3_all": AdapterCase(base="qwen3", config={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    # Vectors beside the factors.
    "dora": AdapterCase(config={"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": "all-linear"}),
    "dora_rank_17": AdapterCase(
        config={"r": 17, "lora_alpha": 8, "use_dora": True, "use_rslora": True, "target_modules": ATTENTION},
        stored="bfloat16",
    ),
    "dora_embed_head": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["embed_tokens", "lm_head"]}
    ),
    "dora_biased_base": AdapterCase(
        base="qwen2", config={"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "v_proj"]}
    ),
    "lora_bias": AdapterCase(config={"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": "all-linear"}),
    "lora_bias_head": AdapterCase(
        config={"r": 8, "lora_alpha": 4, "lora_bias": True, "target_modules": ["lm_head", "gate_proj", "o_proj"]}
    ),
    "lora_bias_biased_base": AdapterCase(
        base="qwen2", config={"r": 4, "lora_alpha": 8, "lora_bias": True, "target_modules": ["k_proj", "v_proj"]}
    ),
    # Active from the last invocation in the prompt: rows 3, 5 and 6; row 5 from its sixth token; rows 1 and 5.
    "alora": AdapterCase(
        config={"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "alora_invocation_tokens": [239]}
    ),
    "alora_two_tokens": AdapterCase(
        config={"r": 2, "lora_alpha": 4, "target_modules": QV, "alora_invocation_tokens": [19, 239]}
    ),
    "alora_bias": AdapterCase(
        config={
            "r": 4,
            "lora_alpha": 8,
            "lora_bias": True,
            "target_modules": ["v_proj", "lm_head"],
            "alora_invocation_tokens": [19],
        }
    ),
    # Rows of tokens.
    "token_rows": AdapterCase(
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "trainable_token_indices": [239, 19, 5, 97, 104]}
    ),
    "token_rows_tied": AdapterCase(
        base="llama_tied",
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": QV,
            "trainable_token_indices": {"embed_tokens": [19, 239, 12, 104]},
        },
    ),
    "token_rows_both": AdapterCase(
        config={
            "r": 4,
            "lora_alpha": 8,
            "use_dora": True,
            "target_modules": QV,
            "trainable_token_indices": {"embed_tokens": [19, 239], "lm_head": list(range(0, 40, 2))},
        },
    ),
    # Embedding and head in the place of the base's.
    "saved_head": AdapterCase(config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["lm_head"]}),
    "saved_embed": AdapterCase(
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["v_proj", "lm_head"],
            "modules_to_save": ["model.embed_tokens"],
        },
        stored="bfloat16",
    ),
    "saved_both": AdapterCase(
        config={
            "r": 4,
            "lora_alpha": 8,
            "use_dora": True,
            "target_modules": QV,
            "modules_to_save": ["embed_tokens", "lm_head"],
        }
    ),
    "saved_tied_head": AdapterCase(
        base="llama_tied", config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["lm_head"]}
    ),
    "saved_tied_embed": AdapterCase(
        base="llama_tied", config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["embed_tokens"]}
    ),
    "saved_tied_ensured": AdapterCase(
        base="llama_tied",
        stored="bfloat16",
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": QV,
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
}

MIXES: dict[str, MixCase] = {
    "two": MixCase(adapters={"rank_8": 0.6, "rank_16": 0.4}),
    "ranks": MixCase(adapters={"rank_1": 1.0, "rank_17": 0.5, "rank_64": 0.25, "rank_128": 1.5}),
    "signs": MixCase(adapters={"alpha_negative": -0.7, "rslora": 0.3, "pattern_regex": -0.2}),
    "embed_head": MixCase(adapters={"embed": 0.5, "head": 0.5, "embed_head": -0.4}),
    "biases": MixCase(adapters={"lora_bias": 0.7, "lora_bias_head": -1.2, "rank_8": 0.4}),
    "tied": MixCase(base="llama_tied", adapters={"tied_embed": 0.5, "tied_head": 0.5, "tied_ensured": 0.3}),
    "five": MixCase(adapters={"rank_2": 0.8, "rank_8": -0.5, "rank_33": 0.7, "rslora": 0.4, "embed": 0.6}),
    "six": MixCase(
        adapters={"rank_1": 0.9, "rank_17": 0.4, "rank_64": -0.3, "head": 0.5, "target_regex": 1.2, "init_eva": 0.5}
    ),
    "seven": MixCase(
        adapters={
            "rank_16": 0.3,
            "rank_128": -0.6,
            "alpha_fraction": 0.8,
            "pattern_suffix": 0.3,
            "exclude_modules": 0.5,
            "embed_head": 0.4,
            "stored_float16": -0.7,
        }
    ),
    "eight": MixCase(
        adapters={
            "rank_1": 0.7,
            "rank_2": -0.6,
            "rank_8": 0.5,
            "rank_33": 0.5,
            "rank_64": 0.3,
            "pattern_rslora": 0.5,
            "layers_to_transform": 1.0,
            "init_mica": -0.6,
        }
    ),
}

ENSEMBLES: dict[str, EnsembleCase] = {
    "logits": EnsembleCase(
        members=({"rank_8": 1.0}, {}, {"rank_17": 0.5, "rank_64": 0.5}), weights=(0.4, 0.3, 0.3), method="mean_logits"
    ),
    "contrast": EnsembleCase(members=({"rank_16": 1.0}, {}), weights=(1.5, -0.5), method="mean_logits"),
    "probs": EnsembleCase(
        members=({}, {"rank_33": 1.0}, {"head": 1.0}, {"embed": 0.7, "rank_1": -1.0}),
        weights=(0.1, 0.4, 0.2, 0.3),
        method="mean_probs",
    ),
    "saved": EnsembleCase(
        members=({"saved_head": 1.0}, {"saved_embed": 1.0}, {"rank_8": 1.0}),
        weights=(0.4, 0.3, 0.3),
        method="mean_probs",
    ),
}
