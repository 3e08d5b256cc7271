"""How the program starts."""

import os
import subprocess
import sys

import pytest

TUNABLES = "GLIBC_TUNABLES"
FRACTION = "XLA_CLIENT_MEM_FRACTION"


def seen(variable: str, *arguments: str, **before: str) -> str:
    """What a variable of the environment is when the command line begins to run."""
    spy = f"import os, sys, openlora_jax.cli as cli; cli.main = lambda: print(os.environ.get({variable!r}, ''))"
    code = f"{spy}; sys.argv[1:] = {list(arguments)!r}; from openlora_jax.__main__ import main; main()"
    environment = {**os.environ, TUNABLES: "", **before}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for through glibc")
def test_commands_that_compute_start_with_huge_pages() -> None:
    assert seen(TUNABLES, "serve") == "glibc.malloc.hugetlb=1"
    before = {TUNABLES: "glibc.malloc.check=0"}
    assert seen(TUNABLES, "serve", **before) == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


def test_commands_that_compute_take_most_of_a_gpus_memory() -> None:
    assert seen(FRACTION, "serve") == "0.92"


def test_a_choice_that_was_made_stays() -> None:
    assert seen(TUNABLES, "serve", **{TUNABLES: "glibc.malloc.hugetlb=0"}) == "glibc.malloc.hugetlb=0"
    assert seen(FRACTION, "serve", **{FRACTION: "0.5"}) == "0.5"
    assert seen(FRACTION, "serve", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == ""


def test_other_commands_start_as_they_are() -> None:
    assert seen(TUNABLES, "adapters", "list") == ""
    assert seen(FRACTION, "adapters", "list") == ""
