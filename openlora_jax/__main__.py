"""The program `openlora`, also `python -m openlora_jax`."""

import os
import sys
from typing import NoReturn

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Makes malloc ask for huge pages: a decode step reads gigabytes once, and misses on 4 KiB pages cost it a fifth."""

COMPUTING = ("serve", "generate", "score", "train", "bench")


def main() -> NoReturn:
    """Runs the command line; a command that computes starts over once with huge pages, which only a start can set."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables and set(COMPUTING) & set(sys.argv[1:2]):
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{HUGE_PAGES}".lstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from openlora_jax.cli import main as run

    run()


if __name__ == "__main__":
    main()
