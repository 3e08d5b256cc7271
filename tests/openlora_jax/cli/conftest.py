from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pytest

from openlora_jax import cli


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


class RunCli(Protocol):
    def __call__(self, *arguments: object, stdin: str = "") -> Ended: ...


@pytest.fixture
def openlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs `openlora ARGUMENTS` in this process, as the shell would."""

    def run(*arguments: object, stdin: str = "") -> Ended:
        monkeypatch.setattr("sys.argv", ["openlora", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", Input(stdin.encode()))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


class Input:
    def __init__(self, text: bytes) -> None:
        self.buffer: Sequence[bytes] = text.splitlines(keepends=True)
