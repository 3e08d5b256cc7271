"""How the program starts."""

import os
import subprocess
import sys

import pytest


def tunables_seen(arguments: list[str], before: str = "") -> str:
    """What GLIBC_TUNABLES is when the command line begins to run."""
    spy = "import os, sys, openlora_jax.cli as cli; cli.main = lambda: print(os.environ.get('GLIBC_TUNABLES', ''))"
    code = f"{spy}; sys.argv[1:] = {arguments!r}; from openlora_jax.__main__ import main; main()"
    environment = {**os.environ, "GLIBC_TUNABLES": before}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for through glibc")
def test_commands_that_compute_start_with_huge_pages() -> None:
    assert tunables_seen(["serve"]) == "glibc.malloc.hugetlb=1"
    assert tunables_seen(["serve"], before="glibc.malloc.check=0") == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


def test_a_choice_that_was_made_stays() -> None:
    assert tunables_seen(["serve"], before="glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0"


def test_other_commands_start_as_they_are() -> None:
    assert tunables_seen(["adapters", "list"]) == ""
