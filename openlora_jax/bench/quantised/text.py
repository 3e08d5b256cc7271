"""Text that every machine has and that no model here was tuned on: what Python's own library says of itself."""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ELSEWHERE = ("site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip")
"""Folders that are not of every Python, or not prose."""
LEAST = 100
"""Characters; shorter docstrings say little."""
HELD_OUT = 4
"""Of so many modules the first is not tuned on."""


@dataclass(frozen=True, slots=True)
class LibraryText:
    """Docstrings of the standard library, by module in the order of their paths.

    Attributes:
        tuned_on: of three modules in four.
        held_out: of the others, without what is said in the former too.
    """

    tuned_on: str
    held_out: str

    @property
    def digest(self) -> str:
        """A sha256 of both; another Python may say other things."""
        return hashlib.sha256(f"{self.tuned_on}\0{self.held_out}".encode()).hexdigest()


def library_text() -> LibraryText:
    """Of the Python that runs."""
    root = Path(sysconfig.get_path("stdlib"))
    said = [list(_docstrings(path)) for path in sorted(root.rglob("*.py")) if not _elsewhere(path.relative_to(root))]
    modules = [docstrings for docstrings in said if docstrings]
    known = {text for index, module in enumerate(modules) if index % HELD_OUT for text in module}
    held_out = [text for module in modules[::HELD_OUT] for text in module if text not in known]
    tuned_on = [text for index, module in enumerate(modules) if index % HELD_OUT for text in module]
    return LibraryText(_joined(tuned_on), _joined(held_out))


def _elsewhere(path: Path) -> bool:
    return any(part in ELSEWHERE for part in path.parts)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= LEAST:
                yield text


def _joined(texts: list[str]) -> str:
    return "\n\n".join(dict.fromkeys(texts))
