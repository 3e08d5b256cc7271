"""Messages into a prompt by the base model's own template, in a sandbox, with the helpers that transformers has."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from openlora_jax.errors import InvalidRequest

MAX_RENDERED = 1 << 22
"""Characters of a rendered prompt, at most."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: the text of `chat_template.jinja`.
        special_tokens: `bos_token` and the like, which templates name.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that makes the model answer these messages.

        Raises:
            InvalidRequest: the template refuses them, or the prompt is longer than MAX_RENDERED.
        """
        pieces = list[str]()
        size = 0
        plain = [{key: str(value) for key, value in message.items()} for message in messages]
        try:
            for piece in self._template.generate(messages=plain, add_generation_prompt=True, **self._special_tokens):
                size += len(piece)
                if size > MAX_RENDERED:
                    raise InvalidRequest("messages", f"make a prompt of more than {MAX_RENDERED} characters")
                pieces.append(piece)
        except InvalidRequest:
            raise
        except Exception as error:  # a template is a program: it can fail in any way
            raise InvalidRequest("messages", f"the chat template refuses them: {_one_line(error)}") from error
        return "".join(pieces)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
