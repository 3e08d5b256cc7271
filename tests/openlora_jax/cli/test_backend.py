"""The backend of a command: its option, before the environment, before the file, before the device's."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jax
import pytest

from openlora_jax import LLM
from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from tests.openlora_jax.cli.conftest import RunCli

VARIABLE = "OPENLORA_BACKEND"


@pytest.fixture(autouse=True)
def _no_backend_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def _own_compilation_cache() -> Iterator[None]:
    """Gives the setting back that a command makes for its process."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("option", "variable", "file", "used"),
    [
        (None, None, None, "cpu"),
        (None, None, "interpret", "interpret"),
        (None, "interpret", "cpu", "interpret"),
        ("cpu", "interpret", "interpret", "cpu"),
        ("auto", "interpret", None, "cpu"),
        (None, "", "interpret", "interpret"),
    ],
)
def test_the_nearest_wins(
    openlora: RunCli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    option: str | None,
    variable: str | None,
    file: str | None,
    used: str,
) -> None:
    (tmp_path / "own.yaml").write_text(f"backend: {file}\n" if file else "")
    if variable is not None:
        monkeypatch.setenv(VARIABLE, variable)
    ended = openlora("doctor", "--config", tmp_path / "own.yaml", *(["--backend", option] if option else []))
    assert f"ops of backend {used}" in ended.out


@pytest.mark.usefixtures("_own_compilation_cache")
@pytest.mark.parametrize("by", ["option", "variable"])
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--prompt", "x"),
        ("score", "--input", "-"),
        ("serve", "--config", "cpu", "--store", "S", "--listen", "127.0.0.1:0", "--quiet"),
        ("bench", "throughput", "--adapters", "0"),
    ],
    ids=lambda command: command[0],
)
def test_every_computing_command_has_the_switch(
    openlora: RunCli, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, command: tuple[str, ...], by: str
) -> None:
    def refuse(self: LLM, *where: str | None, config: EngineConfig, **others: object) -> NoReturn:
        raise InvalidConfig("seen", config.backend)

    monkeypatch.setattr(LLM, "__init__", refuse)
    if by == "variable":
        monkeypatch.setenv(VARIABLE, "interpret")
    asked = ["--backend", "interpret"] if by == "option" else []
    ended = openlora(*command, "--base", tiny_base, *asked)
    assert (ended.status, ended.err) == (2, "openlora: configuration seen: interpret\n")


@pytest.mark.usefixtures("_own_compilation_cache")
def test_a_backend_that_cannot_serve_is_one_line(openlora: RunCli, tiny_base: Path) -> None:
    ended = openlora("generate", "--base", tiny_base, "--prompt", "x", "--backend", "cuda")
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("openlora: configuration backend: backend 'cuda' cannot serve here: ")
    assert "paged_attention" in ended.err
    assert "default device is a cpu" in ended.err


def test_a_backend_that_does_not_exist(openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "rocm")
    ended = openlora("doctor")
    assert ended.status == 2
    assert VARIABLE in ended.err
    assert "rocm" in ended.err
