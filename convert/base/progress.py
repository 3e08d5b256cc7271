"""The progress of a conversion on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from convert.base.weights import Progress as Callback


@contextmanager
def progress_bar() -> Iterator[Callback]:
    """Yields a callback for `convert_base` that draws a bar of each stage on stderr."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None, visible=False)

        def show(stage: str, done: int, total: int) -> None:
            bars.update(task, description=stage, completed=done, total=total, visible=True)

        yield show
