"""The progress of a conversion on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from convert.base.weights import Progress as Callback


@contextmanager
def progress_bar() -> Iterator[Callback]:
    """Yields a callback for `convert_base` that draws a bar of each stage on stderr, and nothing before the first."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True))
    task = bars.add_task("", total=None)

    def show(stage: str, done: int, total: int) -> None:
        bars.start()
        bars.update(task, description=stage, completed=done, total=total)

    try:
        yield show
    finally:
        if bars.live.is_started:
            bars.stop()
