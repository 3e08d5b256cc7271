"""Standard output for tables."""

import os

from rich.console import Console

WIDE = 240


def output() -> Console:
    """As wide as the terminal, or as COLUMNS says; in a file or a pipe every column has room."""
    return Console(width=None if os.isatty(1) or "COLUMNS" in os.environ else WIDE)
