"""Adapters with random, non-zero factors, saved by peft."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import initialize_lora_eva_weights
from safetensors.torch import load_file, save_file

from tests.parity.cases import VOCABULARY, AdapterCase
from tests.parity.make_goldens.oracle import load_base, lora_layers, saved_modules, token_rows

RELATIVE_SIZE = 0.4
"""Frobenius norm of each delta, as a part of its weight's."""

_PEFT_0_3 = (
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
)


def make_adapter(case: AdapterCase, base: Path, directory: Path, seed: int) -> None:
    """Trains nothing: initialises by peft, gives the trained factor random values, saves by peft."""
    torch.manual_seed(seed)
    config = LoraConfig(**_copied(case.config), task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base), config)
    if config.init_lora_weights == "eva":
        _initialise_eva(model)
    initial = directory.with_name(f"{directory.name}_initial")
    if config.init_lora_weights == "pissa":
        model.save_pretrained(initial, save_embedding_layers=False)
    with torch.no_grad():
        for module in lora_layers(model).values():
            _randomise(module, trains_a=config.init_lora_weights == "mica")
        for rows in token_rows(model):
            rows.copy_(0.5 * torch.randn(rows.shape))
        for module in saved_modules(model).values():
            module.weight.add_(RELATIVE_SIZE * module.weight.std() * torch.randn(module.weight.shape))
    model.save_pretrained(
        directory,
        save_embedding_layers=any(name in str(case.config["target_modules"]) for name in ("embed_tokens", "lm_head")),
        path_initial_model_for_weight_conversion=initial if config.init_lora_weights == "pissa" else None,
    )
    (directory / "README.md").unlink()
    _remove(initial)
    _rewrite_tensors(directory / "adapter_model.safetensors", case)
    _rewrite_config(directory / "adapter_config.json", case)


def _copied(config: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(config))
    return copied


def _initialise_eva(model: torch.nn.Module) -> None:
    batches = [{"input_ids": torch.randint(VOCABULARY, (4, 32))} for _ in range(8)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)


def _randomise(module: LoraLayer, *, trains_a: bool) -> None:
    """In place, so that factors that share memory stay shared."""
    if "default" in module.lora_embedding_A:
        trained = module.lora_embedding_A["default"]
    else:
        trained = (module.lora_A if trains_a else module.lora_B)["default"].weight
    trained.copy_(torch.randn(trained.shape))
    wanted = RELATIVE_SIZE * module.get_base_layer().weight.norm()
    trained.mul_(wanted / module.get_delta_weight("default").norm())
    if "default" in module.lora_magnitude_vector:
        magnitude = module.lora_magnitude_vector["default"].weight
        magnitude.mul_(1 + 0.3 * torch.randn(magnitude.shape))
    if module.lora_bias["default"]:
        bias = module.lora_B["default"].bias
        bias.copy_(0.3 * torch.randn(bias.shape))


def _rewrite_tensors(path: Path, case: AdapterCase) -> None:
    dtype = getattr(torch, case.stored)
    tensors = {
        # peft loads a copy of a base weight over the base's own: it must stay equal to it.
        name: tensor if "base_layer" in name else tensor.to(dtype)
        for name, tensor in load_file(path).items()
        if not (case.embedding_keys_only and "lm_head" in name)
    }
    save_file(tensors, path, {"format": "pt"})


def _rewrite_config(path: Path, case: AdapterCase) -> None:
    """No path of this machine, no order that changes from run to run."""
    fields = json.loads(path.read_text())
    fields["base_model_name_or_path"] = f"random/{case.base}"
    for listed in ("target_modules", "modules_to_save"):
        if isinstance(fields[listed], list):
            fields[listed].sort()
    kept = _PEFT_0_3 if case.old_config else fields
    path.write_text(json.dumps({key: fields[key] for key in kept}, indent=2, sort_keys=True) + "\n")


def _remove(directory: Path) -> None:
    if directory.exists():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
