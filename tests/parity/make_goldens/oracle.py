"""The reference answers: float32 log-probabilities by transformers and peft, weights summed for a mix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.parity.goldens import Row, Scores


def load_base(directory: Path, *, untie: bool = False, **config: Any) -> PreTrainedModel:
    """The model in float32; with `untie` the head gets its own copy of the embedding. `config` overrides the file."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager", **config)
    if untie and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model.eval()


def load_adapter(base: Path, adapter: Path) -> torch.nn.Module:
    """A fresh base model with the adapter as peft loads it."""
    return PeftModel.from_pretrained(load_base(base), str(adapter)).eval()


def load_mix(base: Path, adapters: Mapping[Path, float]) -> PreTrainedModel:
    """The base model with the weighted sums of the adapters' deltas and biases in its weights and biases.

    Modules that an adapter saved take the place of the base's.
    """
    mixed = load_base(base, untie=True)
    for adapter, weight in adapters.items():
        loaded = load_adapter(base, adapter)
        for name, module in lora_layers(loaded).items():
            target = mixed.get_submodule(name)
            target.weight.data += weight * module.get_delta_weight("default")
            if module.lora_bias["default"]:
                bias = weight * module.scaling["default"] * module.lora_B["default"].bias.data
                target.bias = torch.nn.Parameter(bias if target.bias is None else target.bias.data + bias)
        for name, module in saved_modules(loaded).items():
            mixed.get_submodule(name).weight.data = module.weight.data
    return mixed


def lora_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    """The adapted modules by their name in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def token_rows(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The trained rows of the embedding and of the head, `[tokens, width]`."""
    return [rows for name, rows in model.named_parameters() if "trainable_tokens_delta" in name]


def saved_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Those that the adapter has whole, by their name in the base model."""
    return {
        name.removeprefix("base_model.model."): module.modules_to_save["default"]
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }


def score(model: torch.nn.Module, rows: Sequence[Row]) -> Scores:
    """The log-probability of each completion token given what precedes it, each row alone."""
    with torch.no_grad():
        return [_score_row(model, row) for row in rows]


def _score_row(model: torch.nn.Module, row: Row) -> list[float]:
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
    chosen = torch.tensor(row.completion_ids)[:, None]
    scores: list[float] = torch.log_softmax(logits.double(), dim=-1).gather(1, chosen)[:, 0].tolist()
    return scores


def continue_together(
    members: Sequence[PreTrainedModel], weights: Sequence[float], method: str, prompt_ids: Sequence[int], count: int
) -> tuple[list[int], list[float], float]:
    """What an ensemble says greedily, its log-probabilities, and the least distance of a best token to the next."""
    tokens, logprobs, margin = list(prompt_ids), list[float](), float("inf")
    with torch.no_grad():
        for _ in range(count):
            logits = torch.stack([model(torch.tensor([tokens])).logits[0, -1].double() for model in members])
            share = torch.tensor(weights, dtype=torch.float64)[:, None]
            together = (share * (logits.softmax(-1) if method == "mean_probs" else logits)).sum(0)
            together = together.log() if method == "mean_probs" else together.log_softmax(-1)
            best = together.topk(2)
            tokens.append(int(best.indices[0]))
            logprobs.append(float(best.values[0]))
            margin = min(margin, float(best.values[0] - best.values[1]))
    return tokens[len(prompt_ids) :], logprobs, margin
