"""The tokenizer inside a GGUF file as a tokenizer.json."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from convert.base.gguf_byte_level import byte_level, splitting_of
from convert.base.gguf_file import GgufFile
from convert.base.gguf_sentencepiece import sentencepiece
from convert.base.tokenizer_files import TokenizerFiles, special_tokens_config
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature

CONTROL_KINDS, USER_DEFINED = (2, 3), 4
"""Values of `tokenizer.ggml.token_type`: unknown and control tokens, and those that a user of the tokenizer added."""


def read_gguf_tokenizer(file: GgufFile) -> TokenizerFiles:
    """The tokenizer and the chat template of a GGUF file.

    Raises:
        BadCheckpoint: tokens, merges, scores or types missing, repeated or in contradiction.
        UnsupportedFeature: a tokenizer of neither kind, or an unknown pre-tokeniser.
    """
    tokens = file.strings("tokenizer.ggml.tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise BadCheckpoint(file.path, "tokenizer.ggml.tokens holds a token twice")
    kinds = _kinds(file, len(tokens))
    special = {name: tokens[index] for name, index in _special_ids(file, len(tokens)).items()}
    model = file.metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        splitting = splitting_of(file)
        tokenizer, add_bos = byte_level(file, ids, splitting), splitting.add_bos
    elif model == "llama":
        tokenizer, add_bos = sentencepiece(file, ids, kinds, special.get("unk")), True
    else:
        remedy = "byte-level BPE (gpt2) and SentencePiece (llama) are read; convert the model's Hugging Face directory"
        raise UnsupportedFeature(file.path, f"tokenizer.ggml.model {str(model)[:60]!r}", remedy)
    _add_tokens(tokenizer, dict(zip(tokens, kinds, strict=True)))
    tokenizer.post_processor = _template(file, add_bos, special, ids)
    template = file.metadata.get("tokenizer.chat_template")
    return TokenizerFiles(
        tokenizer=tokenizer,
        config=special_tokens_config(special),
        chat_template=template if isinstance(template, str) else None,
    )


def _kinds(file: GgufFile, count: int) -> list[int]:
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != count or not all(type(kind) is int for kind in kinds):
        raise BadCheckpoint(file.path, f"tokenizer.ggml.token_type must hold one number for each of {count} tokens")
    return kinds


def _add_tokens(tokenizer: Tokenizer, kinds: Mapping[str, int]) -> None:
    """Tokens that are cut out of the text whole, before anything else."""
    for token, kind in kinds.items():
        if kind in CONTROL_KINDS and token:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED and token:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _special_ids(file: GgufFile, count: int) -> dict[str, int]:
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(index) is int:
            if not 0 <= index < count:
                raise BadCheckpoint(file.path, f"tokenizer.ggml.{key}_token_id {index} is outside {count} tokens")
            found[name] = index
    return found


def _template(file: GgufFile, add_bos: bool, special: Mapping[str, str], ids: Mapping[str, int]) -> Any:
    wanted = {
        "bos": file.metadata.get("tokenizer.ggml.add_bos_token", add_bos),
        "eos": file.metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    for name, add in wanted.items():
        if add and name not in special:
            raise BadCheckpoint(file.path, f"tokenizer.ggml.add_{name}_token without a {name}_token_id")
    used = [special[name] for name, add in wanted.items() if add]
    return processors.TemplateProcessing(
        single=[*([special["bos"]] if wanted["bos"] else []), "$A", *([special["eos"]] if wanted["eos"] else [])],
        special_tokens=[(token, ids[token]) for token in used],
    )
