"""What the benchmarks' commands have in common: lists of numbers as options, and a file of what was measured."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from openlora_jax.cli.rows import check_output

BaseOption = Annotated[Path, typer.Option(help="A converted base model.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="What can be used again is kept here.", show_default="the user's cache")
]


def _checked(file: Path | None) -> Path | None:
    """Before anything is measured. Raises OSError."""
    if file:
        check_output(str(file))
    return file


def _checked_stem(stem: Path | None) -> Path | None:
    """The same for files that are named after it. Raises OSError."""
    if stem:
        check_output(f"{stem}.png")
    return stem


MarkdownOption = Annotated[Path | None, typer.Option(help="Write the tables here, in Markdown.", callback=_checked)]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write setup and samples here.", callback=_checked)]
PlotOption = Annotated[
    Path | None, typer.Option(help="Write PLOT.png and PLOT.svg; needs matplotlib.", callback=_checked_stem)
]


def numbers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """The whole numbers of a list such as 1,16. Raises BadParameter if one is none, or not from `least` to `most`."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < least or max(found) > most:
        problem = f"{text!r} is not a list of whole numbers from {least} to {most}, like 1,16"
        raise typer.BadParameter(problem, param_hint=option)
    return found


def listed(values: tuple[int, ...]) -> str:
    """The text of such a list."""
    return ",".join(map(str, values))


def write(file: Path | None, setup: dict[str, Any], results: Any) -> None:
    """Writes them as JSON, if a file is named."""
    if file:
        file.write_text(json.dumps({"setup": setup, "results": results}, indent=2) + "\n")
