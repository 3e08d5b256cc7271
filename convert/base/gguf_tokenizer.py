"""The tokenizer inside a GGUF file as a tokenizer.json: byte-level BPE with the pre-tokeniser that the file names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from convert.base.gguf_file import GgufFile
from convert.base.tokenizer_files import TokenizerFiles, special_tokens_config
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature

CONTROL_KINDS, USER_DEFINED = (2, 3), 4
"""Values of `tokenizer.ggml.token_type`: unknown and control tokens, and those that a user of the tokenizer added."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}"
QWEN2_WORDS = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{TAIL}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """How text becomes words before BPE, and what belongs to it.

    Attributes:
        pre_tokenizer: makes the step that cuts text into byte-level words.
        ignore_merges: a word that is a token is taken whole, whatever the merges make of it.
        add_bos: whether a prompt begins with the start token where the file does not say.
        compose: Unicode NFC first.
    """

    pre_tokenizer: Callable[[], Any]
    ignore_merges: bool = False
    add_bos: bool = False
    compose: bool = False


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(pattern: str) -> Callable[[], Any]:
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


LLAMA3 = Splitting(_words(LLAMA3_WORDS), ignore_merges=True, add_bos=True)
SPLITTINGS: Mapping[str, Splitting] = {
    "gpt-2": Splitting(_gpt2),
    "smollm": Splitting(_single_digits),
    "starcoder": Splitting(_single_digits),
    "refact": Splitting(_single_digits),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": Splitting(_words(QWEN2_WORDS), compose=True),
    "tekken": Splitting(_words(TEKKEN_WORDS), ignore_merges=True, add_bos=True),
}
"""By `tokenizer.ggml.pre`. The patterns are those of the models' own tokenizer.json."""


def read_gguf_tokenizer(file: GgufFile) -> TokenizerFiles:
    """The tokenizer and the chat template of a GGUF file.

    Raises:
        BadCheckpoint: tokens, merges or types missing, repeated or in contradiction.
        UnsupportedFeature: a tokenizer other than byte-level BPE, or an unknown pre-tokeniser.
    """
    splitting = _splitting(file)
    tokens, merges = _strings(file, "tokens"), _merges(file)
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise BadCheckpoint(file.path, "tokenizer.ggml.tokens holds a token twice")
    tokenizer = _build(file, ids, merges, splitting)
    _add_tokens(file, tokenizer, tokens)
    special = {name: tokens[index] for name, index in _special_ids(file, len(tokens)).items()}
    tokenizer.post_processor = _template(file, splitting, special, ids)
    template = file.metadata.get("tokenizer.chat_template")
    return TokenizerFiles(
        tokenizer=tokenizer,
        config=special_tokens_config(special),
        chat_template=template if isinstance(template, str) else None,
    )


def _splitting(file: GgufFile) -> Splitting:
    model, pre = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2":
        remedy = "only byte-level BPE (gpt2) is read from GGUF; convert the model from its Hugging Face directory"
        raise UnsupportedFeature(file.path, f"tokenizer.ggml.model {str(model)[:60]!r}", remedy)
    if not isinstance(pre, str) or pre not in SPLITTINGS:
        remedy = f"the supported ones are {', '.join(SPLITTINGS)}; convert the model from its Hugging Face directory"
        raise UnsupportedFeature(file.path, f"tokenizer.ggml.pre {str(pre)[:60]!r}", remedy)
    if file.metadata.get("tokenizer.ggml.add_space_prefix"):
        raise UnsupportedFeature(
            file.path, "tokenizer.ggml.add_space_prefix", "convert the model from its Hugging Face directory"
        )
    return SPLITTINGS[pre]


def _strings(file: GgufFile, key: str) -> list[str]:
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadCheckpoint(file.path, f"tokenizer.ggml.{key} must be a list of strings")
    return values


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = []
    for merge in _strings(file, "merges"):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise BadCheckpoint(file.path, f"merge {merge[:80]!r} is not two tokens with a space between")
        merges.append((left, right))
    return merges


def _build(file: GgufFile, ids: dict[str, int], merges: list[tuple[str, str]], splitting: Splitting) -> Tokenizer:
    try:
        tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=splitting.ignore_merges))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise BadCheckpoint(file.path, f"tokenizer.ggml.merges: {error}") from error
    if splitting.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(file: GgufFile, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Tokens that are cut out of the text whole, before anything else."""
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise BadCheckpoint(
            file.path, f"tokenizer.ggml.token_type must hold one number for each of {len(tokens)} tokens"
        )
    for token, kind in zip(tokens, kinds, strict=True):
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


def _template(file: GgufFile, splitting: Splitting, special: Mapping[str, str], ids: Mapping[str, int]) -> Any:
    wanted = {
        "bos": file.metadata.get("tokenizer.ggml.add_bos_token", splitting.add_bos),
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
