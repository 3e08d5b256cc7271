"""Token ids into text as they come: bytes first, then UTF-8, so that half a character is never shown.

A decoder is read from `tokenizer.json` once. Two kinds exist in the models served here: byte-level BPE, where each
character of a token stands for a byte (GPT-2's table), and SentencePiece, where `<0xNN>` is a byte and U+2581 a space.
"""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """How a token's string becomes bytes.

    Attributes:
        byte_level: each character stands for a byte; otherwise the string is text, but for `spaces` and `fallback`.
        spaces: U+2581 is a space.
        fallback: `<0xNN>` is one byte.
        strip: spaces dropped at the beginning of a text, at most.
    """

    byte_level: bool = False
    spaces: bool = False
    fallback: bool = False
    strip: int = 0

    @classmethod
    def of(cls, decoder: Any) -> "TokenBytes":
        """Reads the `decoder` of a `tokenizer.json`.

        Raises:
            ValueError: names the step that is not known.
        """
        found = dict[str, Any]()
        for step in decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder]:
            match step:
                case {"type": "ByteLevel"}:
                    found["byte_level"] = True
                case {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}:
                    found["spaces"] = True
                case {"type": "ByteFallback"}:
                    found["fallback"] = True
                case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                    found["strip"] = start
                case {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme}:
                    found |= {"spaces": True, "strip": 0 if scheme == "never" else 1}
                case {"type": "Fuse"}:
                    pass
                case _:
                    raise ValueError(f"decoder {step!r}")
        return cls(**found)

    def __call__(self, token: str) -> bytes:
        if self.byte_level:
            try:
                return bytes(_BYTE_OF[character] for character in token)
            except KeyError:  # an added token is plain text
                return token.encode()
        if self.fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return (token.replace(_SPACE, " ") if self.spaces else token).encode()


class Detokenizer:
    """One sample's text. Never raises, whatever ids come: bytes that are no UTF-8 become U+FFFD, unknown ids vanish."""

    def __init__(self, to_bytes: Callable[[int], bytes], strip: int) -> None:
        self._to_bytes = to_bytes
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The complete characters that this token adds; an unfinished one is kept for later."""
        return self._stripped(self._decoder.decode(self._to_bytes(token_id)))

    def flush(self) -> str:
        """What is left: U+FFFD for an unfinished character."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(" "):
                self._strip = 0
            else:
                text, self._strip = text[1:], self._strip - 1
        return text


def _byte_of() -> dict[str, int]:
    """GPT-2's table, inverted: printable Latin-1 bytes are themselves, the others follow from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()
