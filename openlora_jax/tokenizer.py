"""The base model's tokenizer, as `convert base` left it: text and messages into ids, ids into text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer as FastTokenizer

from openlora_jax.chat_template import ChatTemplate
from openlora_jax.detokenizer import Detokenizer, TokenBytes
from openlora_jax.errors import BadCheckpoint, InvalidRequest
from openlora_jax.untrusted import parse_json_object, read_json_object, read_limited

TOKENIZER_LIMIT = 64 << 20
TEMPLATE_LIMIT = 1 << 20
"""Bytes of `tokenizer.json` and of `chat_template.jinja`, at most."""

_MAX_ID = 1 << 32


class Tokenizer:
    """Text, messages and ids of one base model. Every method may be called from any thread."""

    def __init__(self, fast: FastTokenizer, token_bytes: TokenBytes, template: ChatTemplate | None) -> None:
        self._fast = fast
        self._token_bytes = token_bytes
        self._template = template
        self._silent = {id_ for id_, token in fast.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def load(cls, base: Path) -> "Tokenizer":
        """Reads the tokenizer and the chat template of a base directory.

        Raises:
            BadCheckpoint: a file is missing, damaged, or of a kind that is not known; names the file.
        """
        path = base / "tokenizer.json"
        text = read_limited(path, TOKENIZER_LIMIT)
        try:
            token_bytes = TokenBytes.of(parse_json_object(path, text).get("decoder"))
            fast = FastTokenizer.from_str(text.decode())
        except BadCheckpoint:
            raise
        except Exception as error:  # the library raises bare Exception
            raise BadCheckpoint(path, f"is not a tokenizer that can be used: {error}") from error
        fast.no_truncation()
        fast.no_padding()
        return cls(fast, token_bytes, _read_template(base))

    @property
    def vocab_size(self) -> int:
        """Ids that stand for a token, added ones included; the model's own vocabulary may be padded beyond."""
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer puts around it if `special`.

        Raises:
            InvalidRequest: the text is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("text", f"has half a surrogate pair at character {error.start}") from error
        return list(self._fast.encode(text, add_special_tokens=special).ids)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of the prompt that the chat template makes of messages with a `role` and a `content` each.

        Raises:
            InvalidRequest: the base model has no template, the template refuses the messages, or no valid Unicode.
        """
        if self._template is None:
            raise InvalidRequest("messages", "this base model has no chat template; give a prompt instead")
        return self.encode(self._template.render(messages), special=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of whole ids, special tokens left out."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> Detokenizer:
        """A fresh detokenizer for one sample."""
        return Detokenizer(self._bytes_of, self._token_bytes.strip)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._silent or not 0 <= token_id < _MAX_ID:
            return b""
        token = self._fast.id_to_token(token_id)
        return b"" if token is None else self._token_bytes(token)


def _read_template(base: Path) -> ChatTemplate | None:
    path = base / "chat_template.jinja"
    if not path.exists():
        return None
    try:
        return ChatTemplate(read_limited(path, TEMPLATE_LIMIT).decode(), _special_tokens(base))
    except (TemplateSyntaxError, UnicodeDecodeError) as error:
        raise BadCheckpoint(path, f"is not a chat template: {error}") from error


def _special_tokens(base: Path) -> dict[str, str]:
    """`bos_token` and the like: given as text, or as an object with it."""

    def text(value: Any) -> Any:
        return value.get("content") if isinstance(value, dict) else value

    config = read_json_object(base / "tokenizer_config.json")
    tokens = {name: text(value) for name, value in config.items() if name.endswith("_token")}
    return {name: token for name, token in tokens.items() if isinstance(token, str)}
