"""Small random base models, saved by transformers."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity.cases import VOCABULARY, BaseCase


def make_base(case: BaseCase, directory: Path, seed: int) -> None:
    """Writes a model whose every tensor matters: spread-out norms and biases, logits about 2 wide."""
    config = AutoConfig.for_model(case.family, **case.fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, parameter.shape, generator))
    model.to(getattr(torch, case.stored)).save_pretrained(directory, max_shard_size="150KB" if case.shards else "50GB")
    (directory / "generation_config.json").unlink(missing_ok=True)
    _tokenizer().save(str(directory / "tokenizer.json"), pretty=False)
    if case.legacy_config:
        _rewrite_as_transformers_4(directory / "config.json")


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.3 * values
    if name.endswith("bias"):
        return 0.5 * values
    return values * (0.25 if "embed_tokens" in name or "lm_head" in name else 1.2 / shape[1] ** 0.5)


def _tokenizer() -> Tokenizer:
    """A word for each token, its id: a base directory has a tokenizer, though nothing here reads text."""
    tokenizer = Tokenizer(WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _rewrite_as_transformers_4(path: Path) -> None:
    fields = json.loads(path.read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    fields["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    fields["torch_dtype"] = fields.pop("dtype")
    fields["transformers_version"] = "4.45.0"
    path.write_text(json.dumps(fields, indent=2) + "\n")
