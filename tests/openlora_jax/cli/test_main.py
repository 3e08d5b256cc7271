"""What every command has in common: statuses, one line for a mistake, and a start that imports no JAX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openlora_jax import __version__, cli
from openlora_jax.errors import EngineStopped
from tests.openlora_jax.cli.conftest import Ended, RunCli

ROOT = Path(__file__).parents[3]


def shell(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "openlora_jax", *arguments]


def test_version(openlora: RunCli) -> None:
    assert openlora("--version").out == f"{__version__}\n"


def test_help_imports_no_jax() -> None:
    program = "import sys, openlora_jax.cli; print({'jax', 'orbax', 'grpc', 'transformers'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_help_names_every_command(openlora: RunCli) -> None:
    ended = openlora("--help")
    assert ended.status == 0
    for command in ("convert", "adapters", "generate", "score", "serve", "bench", "doctor"):
        assert f" {command} " in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frobnicate",), "--frobnicate"),
        (("frobnicate",), "frobnicate"),
        (("score",), "--input"),
        (("score", "--input", "nowhere.jsonl"), "nowhere.jsonl: No such file or directory"),
        (("generate", "--prompt", "a", "--max-tokens", "many"), "--max-tokens"),
        (("doctor", "--config", "nowhere"), "nowhere"),
        (("bench", "throughput", "--base", "nowhere", "--ranks", "300"), "'300' is not a list"),
        (("bench", "throughput", "--base", "nowhere", "--requests", "4", "--adapters", "0,5"), "'0,5' is not a list"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(openlora: RunCli, arguments: tuple[str, ...], message: str) -> None:
    ended = openlora(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("openlora: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err


def test_an_engine_that_stopped_is_one_line_and_status_1(openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**_: object) -> None:
        raise EngineStopped("its steps fail on the device")

    monkeypatch.setattr(cli, "app", stopped)
    assert openlora("serve") == Ended(1, "", "openlora: the engine has stopped: its steps fail on the device\n")


def test_a_group_without_its_command_shows_the_help(openlora: RunCli) -> None:
    ended = openlora("adapters")
    assert (ended.status, ended.err) == (2, "")
    assert "inspect" in ended.out


def test_an_interrupt_is_quiet(openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openlora_jax.cli.score.read_lines", interrupt)
    ended = openlora("score", "--input", "-")
    assert (ended.status, ended.out, ended.err) == (130, "", "")


def test_a_reader_that_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(shell("--help"), cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert result.stderr == ""
