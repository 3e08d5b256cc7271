"""SentencePiece BPE in a GGUF file: pieces joined by their scores, and bytes where there is no piece.

As the tokenizer.json of Llama 2 and its kin has it: the library asks for merges in order, which follow from the scores.
"""

import math
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

from convert.base.gguf_file import GgufFile
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
NORMAL = 1
"""The value of `tokenizer.ggml.token_type` of what text is joined to."""
LONGEST = 256
"""Characters of a piece, every cut of which is looked up; SentencePiece itself makes none of more than 16."""
CHANGES = ("precompiled_charsmap", "remove_extra_whitespaces")
"""Keys of models that change a text first."""


def sentencepiece(file: GgufFile, ids: dict[str, int], kinds: Sequence[int], unknown: str | None) -> Tokenizer:
    """The tokenizer, but for its special tokens; `unknown` is the one for what is not even bytes.

    Raises:
        BadCheckpoint: scores that are none, or a piece beyond the limit.
        UnsupportedFeature: a text would be changed first.
    """
    for key in CHANGES:
        if file.metadata.get(f"tokenizer.ggml.{key}"):
            remedy = "convert the model from its Hugging Face directory"
            raise UnsupportedFeature(file.path, f"tokenizer.ggml.{key}", remedy)
    merges = _merges(file, _scores(file, ids, kinds))
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback="<0x00>" in ids)
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    words = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        words.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(words)
    return tokenizer


def _scores(file: GgufFile, ids: dict[str, int], kinds: Sequence[int]) -> dict[str, float]:
    """Of the pieces that text is joined to."""
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(ids) or not all(map(_finite, scores)):
        raise BadCheckpoint(file.path, f"tokenizer.ggml.scores must hold a finite number for each of {len(ids)} tokens")
    return {piece: score for piece, score, kind in zip(ids, scores, kinds, strict=True) if kind == NORMAL}


def _finite(score: object) -> bool:
    return isinstance(score, float) and math.isfinite(score)


def _merges(file: GgufFile, scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every cut of a piece into two others; the piece of the highest score first."""
    longest = max(scores, key=len, default="")
    if len(longest) > LONGEST:
        raise BadCheckpoint(file.path, f"piece {longest[:40]!r} has {len(longest):,} characters, more than {LONGEST}")
    best_first = sorted(scores, key=scores.__getitem__, reverse=True)
    return [cut for piece in best_first for cut in _cuts(piece, scores)]


def _cuts(piece: str, scores: dict[str, float]) -> Iterator[tuple[str, str]]:
    for end in range(1, len(piece)):
        if piece[:end] in scores and piece[end:] in scores:
            yield piece[:end], piece[end:]
