"""`rank_pattern` and `alpha_pattern`: PEFT's own rule, on an engine that no pattern can make slow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import re2

from openlora_jax.errors import UnsupportedFeature

V = TypeVar("V")

MAX_PROGRAM_BYTES = 1 << 20
"""Memory that one compiled pattern may take."""


class Pattern(Generic[V]):
    r"""The value of the first key for which `re.match(rf"(.*\.)?({key})$", name)` matches a name, or the default.

    RE2 matches in linear time; it lacks look-around and back-references, and a pattern with them is refused.

    Raises:
        UnsupportedFeature: a key that RE2 does not take.
    """

    def __init__(self, path: Path, field: str, values: Mapping[str, V], default: V) -> None:
        self._default = default
        self._values: list[tuple[Any, V]] = [(_compile(path, field, key), value) for key, value in values.items()]

    def value(self, name: str) -> V:
        return next((value for regex, value in self._values if regex.match(name)), self._default)


def _compile(path: Path, field: str, key: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_PROGRAM_BYTES
    try:
        return re2.compile(rf"(.*\.)?({key})$", options)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        raise UnsupportedFeature(
            path, f"the pattern {key[:60]!r} in {field} ({reason})", "list the modules it means by their names"
        ) from error
