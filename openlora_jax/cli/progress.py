"""Progress on a terminal's stderr, gone when done; nothing where stderr is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn

from openlora_jax.progress import Progress


def progress_bar(amount: ProgressColumn | None = None) -> rich.progress.Progress:
    """A bar that shows how much is done as `amount` does, by default as a count."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), amount or MofNCompleteColumn(), TimeElapsedColumn())
    return rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def shown_progress(first: str, amount: ProgressColumn | None = None) -> Iterator[Progress]:
    """Yields a callback that shows each stage; until it is called, `first` is under way."""
    with progress_bar(amount) as bar:
        task = bar.add_task(first, total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield show
