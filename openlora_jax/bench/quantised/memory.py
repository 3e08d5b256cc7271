"""What a process holds at its height; as a program, one that loads a base model and ends."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from openlora_jax.errors import InvalidConfig

PERIOD = 0.005
"""Seconds between two looks."""


def peak(module: str, *arguments: str, status: int = 0, environment: Mapping[str, str] | None = None) -> int:
    """Bytes that `python -m module` held, at most, in this process's environment or another.

    Raises:
        InvalidConfig: this system does not tell, or it ended with another status; its last words are in the text.
    """
    if not _held(os.getpid()):
        raise InvalidConfig("bench", "the memory of a process is read from /proc/PID/status; run it on Linux")
    command: Sequence[str] = (sys.executable, "-m", module, *arguments)
    held = 0
    with TemporaryFile() as said:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while child.poll() is None:
            held = max(held, _held(child.pid))
            time.sleep(PERIOD)
        if child.returncode != status:
            ended = f"`{' '.join(command)}` ended with status {child.returncode}"
            raise InvalidConfig("bench", f"{ended}: {_last_line(said)}")
    return held


def _last_line(text: IO[bytes]) -> str:
    text.seek(0)
    lines = text.read().decode(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


def _held(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Loads a base model as an engine does; without one, only what that takes, JAX's compiler among it."""
    import jax
    import jax.numpy as jnp

    from openlora_jax.model.checkpoint import BaseManifest
    from openlora_jax.model.parameters import Parameters
    from pallas_kernels.registry import resolve

    ops = resolve("auto")
    jax.block_until_ready(jnp.stack([jnp.zeros(1)] * 2))
    for base in map(Path, sys.argv[1:]):
        manifest = BaseManifest.read(base)
        jax.block_until_ready(Parameters.read(base, manifest.config, manifest.dtype, ops.quantized_layers))


if __name__ == "__main__":
    main()
