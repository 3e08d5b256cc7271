"""PEFT's own way to batch several adapters, `adapter_names`, on the same weights; needs torch and peft."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openlora_jax.bench.throughput import LINEAR_MODULES
from openlora_jax.bench.transformers_model import transformers_model
from openlora_jax.errors import InvalidConfig


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
        self._model: Any = peft.get_peft_model(transformers_model(base), lora, adapter_name="0")
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
