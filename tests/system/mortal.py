"""Runs `openlora` commands as children that may be killed: what takes long to import is imported once.

Reads a command's arguments as a JSON list from stdin, prints the child's process id; reads another line, waits for the
child and prints its exit status. Run by `Mortal`.
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

ROOT = Path(__file__).parents[2]


class Mortal:
    """Starts the commands of this file's `main`, and kills them."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.mortal"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=60)

    def run(self, *arguments: object, kill_after: float | None = None) -> int:
        """The exit status of a command, negative for the signal that ended it; killed after so many seconds."""
        child = self._ask(json.dumps([str(argument) for argument in arguments]))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # a zombie at least: it is waited for after this
        return self._ask("wait")

    def _ask(self, line: str) -> int:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line + "\n")
        stdin.flush()
        return int(stdout.readline())


def moments(until: float, count: int, seed: int) -> list[float]:
    """Random moments, one in each of `count` equal parts of the time."""
    chance = random.Random(seed)
    return [until * (part + chance.random()) / count for part in range(count)]


def main(commands: IO[str]) -> None:
    for module in ("convert.adapter", "convert.base", "openlora_jax.adapters.store"):
        importlib.import_module(module)
    from openlora_jax import cli

    for line in commands:
        child = os.fork()
        if child == 0:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            sys.argv[1:] = json.loads(line)
            cli.main()
        print(child, flush=True)  # noqa: T201
        next(commands)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.stdin)
