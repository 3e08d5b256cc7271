"""Both kinds of tokenizer, built small: byte-level BPE and SentencePiece with byte fallback. Oracle: `tokenizers`."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from openlora_jax.detokenizer import TokenBytes
from openlora_jax.errors import BadCheckpoint, InvalidRequest
from openlora_jax.tokenizer import Tokenizer


def byte_level() -> FastTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id_ for id_, token in enumerate([*alphabet, "he", "Ġh"])}
    fast = FastTokenizer(models.BPE(vocab, [("h", "e"), ("Ġ", "h")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return with_added_tokens(fast)


def sentence_piece() -> FastTokenizer:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab |= {token: len(vocab) + i for i, token in enumerate(["▁", "h", "e", "l", "o", "é", "▁h", "he"])}
    fast = FastTokenizer(models.BPE(vocab, [("▁", "h"), ("h", "e")], byte_fallback=True, unk_token="<unk>"))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_added_tokens(fast)


def with_added_tokens(fast: FastTokenizer) -> FastTokenizer:
    fast.add_special_tokens([AddedToken("<s>"), AddedToken("<|end|>")])
    fast.add_tokens([AddedToken("<é tool>")])
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", fast.token_to_id("<s>"))]
    )
    return fast


def id_of(fast: FastTokenizer, token: str) -> int:
    id_ = fast.token_to_id(token)
    assert id_ is not None
    return id_


KINDS = {"byte_level": byte_level, "sentence_piece": sentence_piece}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"


def write_base(path: Path, fast: FastTokenizer, template: str | None = TEMPLATE) -> Path:
    fast.enable_truncation(3)
    fast.enable_padding(length=40)
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(fast.to_str())
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "pad_token": None}))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def made(kind: str) -> tuple[Tokenizer, FastTokenizer]:
    fast = KINDS[kind]()
    return Tokenizer(fast, TokenBytes.of(json.loads(fast.to_str())["decoder"]), None), fast


PAIRS = {kind: made(kind) for kind in KINDS}
kinds = st.sampled_from(sorted(KINDS))


@given(kinds, st.text())
def test_text_comes_back_as_the_library_decodes_it(kind: str, text: str) -> None:
    tokenizer, fast = PAIRS[kind]
    ids = tokenizer.encode(text)
    assert ids == fast.encode(text).ids
    assert tokenizer.decode(ids) == fast.decode(ids)


@given(kinds, st.text())
def test_never_half_a_character(kind: str, text: str) -> None:
    tokenizer, _ = PAIRS[kind]
    ids = tokenizer.encode(text, special=False)
    stream, shown, whole = tokenizer.stream(), "", tokenizer.decode(ids)
    for id_ in ids:
        shown += stream.push(id_)
        assert whole.startswith(shown)
    assert shown + stream.flush() == whole


@given(kinds, st.lists(st.integers(-5, 2**40) | st.integers(0, 300)))
def test_any_ids_give_some_text(kind: str, ids: list[int]) -> None:
    tokenizer, _ = PAIRS[kind]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_an_unfinished_character_is_replaced_at_the_end_only() -> None:
    tokenizer, fast = PAIRS["byte_level"]
    first, *rest = tokenizer.encode("é", special=False)
    stream = tokenizer.stream()
    assert (stream.push(first), stream.flush()) == ("", "\ufffd")
    stream = tokenizer.stream()
    assert [stream.push(first), stream.push(id_of(fast, "h"))] == ["", "\ufffdh"]
    assert len(rest) == 1


def test_special_tokens_are_no_text_and_added_ones_are() -> None:
    for tokenizer, fast in PAIRS.values():
        ids = [id_of(fast, token) for token in ("<s>", "h", "<é tool>", "<|end|>", "he")]
        assert tokenizer.decode(ids) == fast.decode(ids)
        assert tokenizer.decode(ids).replace(" ", "") == "h<étool>he"


@pytest.mark.parametrize("kind", KINDS)
def test_load(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_base(tmp_path, KINDS[kind]()))
    _, fast = PAIRS[kind]
    assert tokenizer.encode("hello hello") == fast.encode("hello hello").ids, "truncation and padding are not ours"
    assert tokenizer.encode("hello", special=False) == fast.encode("hello", add_special_tokens=False).ids
    assert tokenizer.vocab_size == fast.get_vocab_size()


def test_chat_takes_special_tokens_from_the_template_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_base(tmp_path, byte_level()))
    expected = tokenizer.encode("<s>user:hello<|end|>", special=False)
    assert tokenizer.encode_chat([{"role": "user", "content": "hello"}]) == expected


def test_no_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_base(tmp_path, byte_level(), template=None))
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hello"}])


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        PAIRS["byte_level"][0].encode("ab\ud800")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"decoder": {"type": "WordPiece"}}'),
        ("tokenizer.json", '{"decoder": 7}'),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_damaged_files(file: str, text: str, tmp_path: Path) -> None:
    base = write_base(tmp_path, byte_level())
    (base / file).write_text(text)
    with pytest.raises(BadCheckpoint, match=file):
        Tokenizer.load(base)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
