"""The tokenizer and chat template that go with a base model, and reading them from a Hugging Face directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from openlora_jax.detokenizer import TokenBytes
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.tokenizer import TEMPLATE_LIMIT, TOKENIZER_LIMIT
from openlora_jax.untrusted import parse_json_object, read_json_object, read_limited

SPECIAL_TOKENS = ("bos", "eos", "unk", "pad")
SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a base directory holds beside its weights.

    Attributes:
        tokenizer: all of it: normalisation, words, merges, start and end tokens.
        config: the special tokens by role, as the chat template names them.
        chat_template: Jinja source, None where the model has no template.
    """

    tokenizer: Tokenizer
    config: Mapping[str, Any]
    chat_template: str | None

    def write(self, base: Path) -> None:
        self.tokenizer.save(str(base / "tokenizer.json"))
        (base / "tokenizer_config.json").write_text(json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")
        if self.chat_template is not None:
            (base / "chat_template.jinja").write_text(self.chat_template)


def special_tokens_config(special: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer_config.json that makes transformers, too, take tokenizer.json as it is."""
    return {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": text for role, text in special.items()}}


def read_hf_tokenizer(folder: Path, vocab_size: int) -> TokenizerFiles:
    """The tokenizer and the chat template of a Hugging Face directory.

    Raises:
        BadCheckpoint: malformed files, or a vocabulary that is larger than the model's.
        UnsupportedFeature: there is no tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        _refuse_slow(folder)
    try:
        text = read_limited(path, TOKENIZER_LIMIT)
        TokenBytes.of(parse_json_object(path, text).get("decoder"))  # one that text can be streamed with
        tokenizer = Tokenizer.from_buffer(text)
    except BadCheckpoint:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise BadCheckpoint(path, f"is no tokenizer that can be used: {str(error)[:200]}") from error
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > vocab_size:
        raise BadCheckpoint(path, f"has {size:,} tokens, the model {vocab_size:,}: the tokenizer of another model?")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _optional_json(folder / "tokenizer_config.json")
    special = {**_special_tokens(_optional_json(folder / "special_tokens_map.json")), **_special_tokens(config)}
    return TokenizerFiles(tokenizer, special_tokens_config(special), _chat_template(folder, config))


def _refuse_slow(folder: Path) -> None:
    for name in SLOW_TOKENIZERS:
        if (folder / name).exists():
            remedy = "make a tokenizer.json: AutoTokenizer.from_pretrained(SRC).save_pretrained(SRC)"
            raise UnsupportedFeature(folder / name, "a tokenizer without tokenizer.json", remedy)
    raise BadCheckpoint(folder, "has no tokenizer.json")


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path, TOKENIZER_LIMIT) if path.exists() else {}


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """The texts by role; a token is written as its text or as an object that holds it."""
    found = {}
    for role in SPECIAL_TOKENS:
        token = fields.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[role] = text
    return found


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """From its own file, from chat_template.json, or from tokenizer_config.json, in that order."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_limited(path, TEMPLATE_LIMIT).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadCheckpoint(path, "is not UTF-8") from error
    template = _optional_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
