"""SentencePiece vocabularies in GGUF files. Oracle: the sentencepiece library, on a model that it trains here."""

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from convert.base.gguf_file import GgufFile
from convert.base.gguf_tokenizer import read_gguf_tokenizer
from convert.base.hf_config import read_hf_config
from openlora_jax.detokenizer import TokenBytes
from openlora_jax.errors import BadCheckpoint, OpenLoraError, UnsupportedFeature
from tests.convert.base.checkpoints import CONFIG, write_gguf, write_hf

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = {f"{SPACE}ab": -1.0, "ab": -2.0, f"{SPACE}a": -3.0, SPACE: -4.0, "a": -5.0, "b": -6.0, "c": -7.0}
VOCABULARY = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, "<tool>"]
KEYS: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.tokens": VOCABULARY,
    "tokenizer.ggml.scores": [0.0] * 259 + [*PIECES.values(), 0.0],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 4],
    "tokenizer.ggml.unknown_token_id": np.uint32(0),
    "tokenizer.ggml.bos_token_id": np.uint32(1),
    "tokenizer.ggml.eos_token_id": np.uint32(2),
}


def read(folder: Path, keys: dict[str, Any]) -> Tokenizer:
    config = read_hf_config(write_hf(folder, {**CONFIG, "vocab_size": len(keys["tokenizer.ggml.tokens"])}, None))
    with closing(GgufFile(write_gguf(folder / "x.gguf", config, {}, keys))) as file:
        return read_gguf_tokenizer(file).tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab c", [f"{SPACE}ab", SPACE, "c"]),
        ("aab", [f"{SPACE}a", "ab"]),
        ("", []),
        ("é", [SPACE, "<0xC3>", "<0xA9>"]),
        ("ab<tool>b", [f"{SPACE}ab", "<tool>", SPACE, "b"]),
        ("<0x41>", [SPACE, *(f"<0x{byte:02X}>" for byte in b"<0x41>")]),
    ],
)
def test_pieces_are_joined_by_score(tmp_path: Path, text: str, expected: list[str]) -> None:
    tokenizer = read(tmp_path, KEYS)
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["<s>", *expected]
    if "<tool>" not in text:
        assert tokenizer.decode(encoded.ids) == text


def test_text_can_be_streamed_with_it(tmp_path: Path) -> None:
    decoder = json.loads(read(tmp_path, KEYS).to_str())["decoder"]
    assert TokenBytes.of(decoder) == TokenBytes(spaces=True, fallback=True, strip=1)


def test_no_space_in_front_where_the_file_says_so(tmp_path: Path) -> None:
    tokenizer = read(
        tmp_path, {**KEYS, "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    )
    encoded = tokenizer.encode("ab ab")
    assert encoded.tokens == ["ab", f"{SPACE}ab"]
    assert tokenizer.decode(encoded.ids) == "ab ab"


LONG = "x" * 257
BAD: dict[str, tuple[dict[str, Any], type[OpenLoraError], str]] = {
    "no scores": ({"scores": None}, BadCheckpoint, "scores must hold a finite number for each of 267"),
    "a score too few": ({"scores": [0.0] * 266}, BadCheckpoint, "scores must hold"),
    "a score of NaN": ({"scores": [float("nan")] * 267}, BadCheckpoint, "scores must hold"),
    "a piece too long": ({"tokens": [*VOCABULARY[:265], LONG, "<tool>"]}, BadCheckpoint, "257 characters, more than"),
    "a text changed first": ({"remove_extra_whitespaces": True}, UnsupportedFeature, "remove_extra_whitespaces"),
    "no start to add": ({"bos_token_id": None}, BadCheckpoint, "without a bos_token_id"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_for_sure_is_refused(tmp_path: Path, case: str) -> None:
    overrides, error, match = BAD[case]
    with pytest.raises(error, match=match):
        read(tmp_path, KEYS | {f"tokenizer.ggml.{key}": value for key, value in overrides.items()})


@pytest.mark.torch
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="<\0", exclude_categories=["Cs"]), max_size=60))
def test_texts_become_what_sentencepiece_makes_of_them(trained: tuple[Any, Tokenizer], text: str) -> None:
    oracle, tokenizer = trained
    assert tokenizer.encode(text, add_special_tokens=False).ids == oracle.encode(text)


@pytest.mark.torch
def test_prose_becomes_what_sentencepiece_makes_of_it(trained: tuple[Any, Tokenizer]) -> None:
    oracle, tokenizer = trained
    lengths = set()
    for line in PROSE:
        ids = oracle.encode(line)
        assert tokenizer.encode(line).ids == [1, *ids]
        assert tokenizer.decode(ids) == line
        lengths |= {len(piece) for piece in oracle.encode(line, out_type=str)}
    assert max(lengths) > 5, "pieces are joined at all"


PROSE = [line for line in (Path(__file__).parents[3] / "README.md").read_text().splitlines() if "<" not in line]
"""Without control tokens, which a text of the house's own may hold."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """A model of sentencepiece's own, as Llama's: BPE with bytes for what is missing; and ours, by a GGUF file."""
    import sentencepiece as spm

    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    oracle = spm.SentencePieceProcessor(model_proto=model.getvalue())
    count = oracle.get_piece_size()
    kinds = [(oracle.is_unknown, 2), (oracle.is_control, 3), (oracle.is_byte, 6), (lambda _: True, 1)]
    keys = {
        "tokenizer.ggml.tokens": [oracle.id_to_piece(index) for index in range(count)],
        "tokenizer.ggml.scores": [oracle.get_score(index) for index in range(count)],
        "tokenizer.ggml.token_type": [next(kind for of, kind in kinds if of(index)) for index in range(count)],
    }
    return oracle, read(tmp_path_factory.mktemp("trained"), KEYS | keys)
