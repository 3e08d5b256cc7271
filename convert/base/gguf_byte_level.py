"""Byte-level BPE in a GGUF file, with the pre-tokeniser that the file names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from convert.base.gguf_file import GgufFile
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature

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


def splitting_of(file: GgufFile) -> Splitting:
    """What the file's pre-tokeniser is.

    Raises:
        UnsupportedFeature: it is unknown.
    """
    pre = file.metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in SPLITTINGS:
        remedy = f"the supported ones are {', '.join(SPLITTINGS)}; convert the model from its Hugging Face directory"
        raise UnsupportedFeature(file.path, f"tokenizer.ggml.pre {str(pre)[:60]!r}", remedy)
    if file.metadata.get("tokenizer.ggml.add_space_prefix"):
        raise UnsupportedFeature(
            file.path, "tokenizer.ggml.add_space_prefix", "convert the model from its Hugging Face directory"
        )
    return SPLITTINGS[pre]


def byte_level(file: GgufFile, ids: dict[str, int], splitting: Splitting) -> Tokenizer:
    """The tokenizer, but for its special tokens.

    Raises:
        BadCheckpoint: merges that are none, or of tokens that are not there.
    """
    try:
        tokenizer = Tokenizer(models.BPE(vocab=ids, merges=_merges(file), ignore_merges=splitting.ignore_merges))
    except BadCheckpoint:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise BadCheckpoint(file.path, f"tokenizer.ggml.merges: {error}") from error
    if splitting.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = []
    for merge in file.strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise BadCheckpoint(file.path, f"merge {merge[:80]!r} is not two tokens with a space between")
        merges.append((left, right))
    return merges
