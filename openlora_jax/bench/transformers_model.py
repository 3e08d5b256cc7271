"""A converted base model as transformers' own class, for those who have torch."""

from pathlib import Path
from typing import Any

import numpy as np

from openlora_jax.errors import InvalidConfig
from openlora_jax.model.checkpoint import BaseManifest, read_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import weight_table


def transformers_model(base: Path) -> Any:
    """The same weights, in float32.

    Raises:
        InvalidConfig: a model with rope scaling, or a quantised one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = BaseManifest.read(base).config
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.family, **_hf_fields(config)))
    state = {}
    table = weight_table(config)
    for name, values in read_weights(base, config, "float32").items():
        for source, rows in table[name].rows.items():
            state[source] = torch.from_numpy(np.array(values[rows]))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def _hf_fields(config: ModelConfig) -> dict[str, Any]:
    if config.quantization is not None:
        raise InvalidConfig("--base", "is quantised; name the plain base that it was made of")
    if config.rope_scaling is not None:
        raise InvalidConfig("--base", "has rope scaling, which is not handed to transformers; name a base without it")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
