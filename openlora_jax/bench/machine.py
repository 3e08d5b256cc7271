"""Where a benchmark ran: what its report says of the machine and of the software."""

import os
import platform
from importlib.metadata import version
from typing import Any

from openlora_jax import __version__


def machine() -> dict[str, Any]:
    """The processor, and how many of it."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    own = {"openlora-jax": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in ("jax", "jaxlib", "numpy")}


def line(machine: dict[str, Any], versions: dict[str, str]) -> str:
    """Both in a line, for a reader."""
    return f"{machine['cpu']}, {machine['cores']} cores; jax {versions['jax']}, python {versions['python']}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
