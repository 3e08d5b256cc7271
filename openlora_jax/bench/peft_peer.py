"""PEFT's own way to batch several adapters, `adapter_names`, on the same weights; needs torch and peft."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openlora_jax.bench.throughput import LINEAR_MODULES
from openlora_jax.errors import InvalidConfig
from openlora_jax.model.checkpoint import BaseManifest, read_weights
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.weights import weight_table


class PeftPeer:
    """The base model in transformers, with synthetic adapters of one rank on all seven linear modules."""

    def __init__(self, base: Path, adapters: int, rank: int) -> None:
        """Loads the model; the adapters' numbers are random, so that none of them is skipped.

        Raises:
            InvalidConfig: torch or peft is not installed.
        """
        try:
            import peft
            import torch
        except ImportError as error:
            raise InvalidConfig("--peer", "peft and torch are not installed; install openlora-jax[oracle]") from error
        self.name = f"peft {peft.__version__}"
        self._torch = torch
        torch.set_num_threads(os.cpu_count() or 1)
        lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LINEAR_MODULES), init_lora_weights=False)
        self._model: Any = peft.get_peft_model(_transformers_model(base), lora, adapter_name="0")
        for index in range(1, adapters):
            self._model.add_adapter(str(index), lora)
        self._model.eval()

    def generate(self, prompts: Sequence[Sequence[int]], new: int, adapters: int) -> None:
        """Continues every prompt by `new` tokens, greedily, with that many distinct adapters; 0 disables them all."""
        ids = self._torch.tensor(prompts)
        arguments = {
            "input_ids": ids,
            "attention_mask": self._torch.ones_like(ids),
            "max_new_tokens": new,
            "min_new_tokens": new,
            "do_sample": False,
            "pad_token_id": 0,
        }
        with self._torch.inference_mode():
            if adapters:
                names = [str(index % adapters) for index in range(len(prompts))]
                self._model.generate(**arguments, adapter_names=names)
            else:
                with self._model.disable_adapter():
                    self._model.generate(**arguments)


def _transformers_model(base: Path) -> Any:
    """The converted base model as transformers' own class, with the same weights."""
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
    if config.rope_scaling is not None or config.quantization is not None:
        raise InvalidConfig("--peer", "peft is compared on plain models without rope scaling only")
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
