from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.base.gguf_byte_level import SPLITTINGS
from convert.base.gguf_file import GgufFile
from convert.base.gguf_tokenizer import read_gguf_tokenizer
from convert.base.hf_config import read_hf_config
from convert.base.tokenizer_files import TokenizerFiles
from openlora_jax.errors import BadCheckpoint, OpenLoraError, UnsupportedFeature
from tests.convert.base.checkpoints import CONFIG, TOKENS, byte_tokens, write_gguf, write_hf

U32 = np.uint32


def read(folder: Path, **overrides: Any) -> TokenizerFiles:
    """The tokenizer of a GGUF file without weights; keys without the prefix `tokenizer.ggml.`."""
    config = read_hf_config(write_hf(folder, {**CONFIG, "vocab_size": 320}, None))
    keys = {key if "." in key else f"tokenizer.ggml.{key}": value for key, value in overrides.items()}
    with closing(GgufFile(write_gguf(folder / "x.gguf", config, {}, keys))) as file:
        return read_gguf_tokenizer(file)


def words(folder: Path, pre: str, text: str) -> list[str]:
    """How text is cut before BPE, with spaces as they are."""
    cut = read(folder, pre=pre).tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


SPLITS: list[tuple[str, str, list[str]]] = [
    ("gpt-2", "in 1234 I'll", ["in", " 1234", " I", "'ll"]),
    ("gpt-2", "I'LL", ["I", "'", "LL"]),
    ("gpt-2", "a  b\n\nc", ["a", " ", " b", "\n", "\n", "c"]),
    ("smollm", "in 1234 I'll", ["in", " ", "1", "2", "3", "4", " I", "'ll"]),
    ("smollm", "x²٣", ["x", "²", "٣"]),
    ("starcoder", "v10", ["v", "1", "0"]),
    ("llama-bpe", "in 12345 I'LL", ["in", " ", "123", "45", " I", "'LL"]),
    ("llama-bpe", "a  b\n\nc (d)", ["a", " ", " b", "\n\n", "c", " (", "d", ")"]),
    ("llama-bpe", "étude 日本語!", ["étude", " 日本語", "!"]),
    ("qwen2", "in 123 I'LL", ["in", " ", "1", "2", "3", " I", "'LL"]),
    ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
    ("tekken", "a/b\n/c", ["a", "/b", "\n", "/c"]),
]


@pytest.mark.parametrize(("pre", "text", "expected"), SPLITS)
def test_words(tmp_path: Path, pre: str, text: str, expected: list[str]) -> None:
    assert words(tmp_path, pre, text) == expected


TEXTS = ["Hello 12, ab a", "  two  spaces\t\n\n", "naïve 日本語 🦙 ½", "x<|start|>y<|end|>", ""]


@pytest.mark.parametrize("pre", SPLITTINGS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back(tmp_path: Path, pre: str, text: str) -> None:
    tokenizer = read(tmp_path, pre=pre, add_bos_token=False).tokenizer
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def tokens(folder: Path, text: str, **overrides: Any) -> list[str]:
    return list(read(folder, **overrides).tokenizer.encode(text).tokens)


def test_merges_apply_within_words(tmp_path: Path) -> None:
    assert tokens(tmp_path, "12 ab a", pre="gpt-2") == ["12", "Ġa", "b", "Ġa"]
    assert tokens(tmp_path, "12 ab a", pre="smollm") == ["1", "2", "Ġa", "b", "Ġa"]


def test_a_word_that_is_a_token_is_taken_whole_where_the_model_says_so(tmp_path: Path) -> None:
    vocabulary = [*byte_tokens(), "ab", "abc"]
    overrides: dict[str, Any] = {
        "tokens": vocabulary,
        "token_type": [1] * len(vocabulary),
        "merges": ["a b"],
        "bos_token_id": None,
        "eos_token_id": None,
        "add_bos_token": False,
    }
    assert tokens(tmp_path, "abc", pre="llama-bpe", **overrides) == ["abc"]
    assert tokens(tmp_path, "abc", pre="qwen2", **overrides) == ["ab", "c"]


def test_qwen_composes_unicode(tmp_path: Path) -> None:
    decomposed, composed = "e\u0301", "\u00e9"
    assert tokens(tmp_path, decomposed, pre="qwen2") == tokens(tmp_path, composed, pre="qwen2")
    assert tokens(tmp_path, decomposed, pre="smollm") != tokens(tmp_path, composed, pre="smollm")


def test_control_tokens_are_cut_out_of_the_text(tmp_path: Path) -> None:
    files = read(tmp_path)
    encoding = files.tokenizer.encode("<|start|>a<|end|>")
    assert encoding.ids == [len(TOKENS), TOKENS.index("a"), len(TOKENS) + 1]
    assert files.tokenizer.decode(encoding.ids) == "a"
    assert files.config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|start|>",
        "eos_token": "<|end|>",
    }


def test_user_defined_tokens_are_cut_out_but_stay_text(tmp_path: Path) -> None:
    vocabulary = [*byte_tokens(), "ab", "<think>", "<|end|>"]
    overrides: dict[str, Any] = {"tokens": vocabulary, "token_type": [1] * 257 + [4, 3], "merges": ["a b"]}
    tokenizer = read(tmp_path, **overrides, bos_token_id=None, eos_token_id=U32(258)).tokenizer
    assert tokenizer.encode("ab<think>").ids == [256, 257]
    assert tokenizer.decode([256, 257, 258]) == "ab<think>"


STARTS = [
    ("smollm", {}, []),
    ("smollm", {"add_bos_token": True}, ["<|start|>"]),
    ("llama-bpe", {}, ["<|start|>"]),
    ("llama-bpe", {"add_bos_token": False}, []),
]


@pytest.mark.parametrize(("pre", "overrides", "start"), STARTS)
def test_the_start_token(tmp_path: Path, pre: str, overrides: dict[str, Any], start: list[str]) -> None:
    assert tokens(tmp_path, "x", pre=pre, **overrides) == [*start, "x"]


def test_the_end_token(tmp_path: Path) -> None:
    assert tokens(tmp_path, "x", add_bos_token=True, add_eos_token=True) == ["<|start|>", "x", "<|end|>"]


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    assert read(tmp_path).chat_template is None
    assert read(tmp_path, **{"tokenizer.chat_template": "{{ messages }}"}).chat_template == "{{ messages }}"


BAD: dict[str, tuple[dict[str, Any], type[OpenLoraError], str]] = {
    "an unknown pre-tokeniser": ({"pre": "new-bpe"}, UnsupportedFeature, "pre 'new-bpe' .* smollm"),
    "no pre-tokeniser": ({"pre": None}, UnsupportedFeature, "pre 'None'"),
    "the one that guesses": ({"pre": "default"}, UnsupportedFeature, "pre 'default'"),
    "another kind": ({"model": "bert"}, UnsupportedFeature, "model 'bert' .* Hugging Face directory"),
    "a space in front": ({"add_space_prefix": True}, UnsupportedFeature, "add_space_prefix"),
    "no merges": ({"merges": None}, BadCheckpoint, "merges must be a list"),
    "half a merge": ({"merges": ["a"]}, BadCheckpoint, "merge 'a'"),
    "a merge of three": ({"merges": ["a b c"]}, BadCheckpoint, "merge 'a b c'"),
    "a merge of no token": ({"merges": ["a zz"]}, BadCheckpoint, "merges: .*zz"),
    "tokens of numbers": ({"tokens": [1, 2]}, BadCheckpoint, "tokens must be a list of strings"),
    "a token twice": ({"tokens": ["a", "a"]}, BadCheckpoint, "twice"),
    "too few types": ({"token_type": [1]}, BadCheckpoint, "token_type must hold one number for each of 320"),
    "a start outside": ({"bos_token_id": U32(320)}, BadCheckpoint, "bos_token_id 320"),
    "no start to add": ({"bos_token_id": None, "add_bos_token": True}, BadCheckpoint, "without a bos_token_id"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_for_sure_is_refused(tmp_path: Path, case: str) -> None:
    overrides, error, match = BAD[case]
    with pytest.raises(error, match=match):
        read(tmp_path, **overrides)
