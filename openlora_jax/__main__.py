"""The program `openlora`, also `python -m openlora_jax`."""

import os
import sys
from typing import NoReturn

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Makes malloc ask for huge pages: a decode step reads gigabytes once, and misses on 4 KiB pages cost it a fifth."""

DEVICE_MEMORY = {"XLA_CLIENT_MEM_FRACTION": "0.92"}
"""What JAX takes of a GPU's memory, instead of three quarters: who computes has the device, and CUDA needs the rest."""

COMPUTING = ("serve", "generate", "score", "train", "bench")


def main() -> NoReturn:
    """Runs the command line; a command that computes starts over once with huge pages, which only a start can set."""
    if set(COMPUTING) & set(sys.argv[1:2]):
        if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its former name; JAX refuses both together
            os.environ.update({**DEVICE_MEMORY, **os.environ})
        tunables = os.environ.get("GLIBC_TUNABLES", "")
        if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
            os.environ["GLIBC_TUNABLES"] = f"{tunables}:{HUGE_PAGES}".lstrip(":")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from openlora_jax.cli import main as run

    run()


if __name__ == "__main__":
    main()
