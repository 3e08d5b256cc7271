"""A table that can be shown in a terminal and written in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from openlora_jax.bench.long_tail.client import STAGES, Answer
from openlora_jax.bench.long_tail.figures import Bound, Loads, breakdown


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Rows of text; the first column names them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ["---", *["--:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


def ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def spread(values: Sequence[float]) -> str:
    """Smallest to largest, in milliseconds."""
    return f"({ms(min(values))} .. {ms(max(values))})"


def bounds(found: Iterable[Bound]) -> Grid:
    """What was promised, and whether it is kept."""
    rows = tuple(
        (
            bound.what,
            f"{bound.median:.2f} ({min(bound.values):.2f} .. {max(bound.values):.2f})",
            f"{'at least' if bound.least else 'at most'} {bound.limit:g}",
            "pass" if bound.holds else "short",
        )
        for bound in found
    )
    title = "Bounds: medians of the rounds (smallest .. largest)"
    return Grid(title=title, columns=("figure", "measured", "bound", ""), rows=rows)


def stages(title: str, groups: Iterable[tuple[str, Sequence[Answer]]]) -> Grid:
    """Where the time to the second token goes, by group of answers."""
    rows = []
    for name, answers in groups:
        means = breakdown(answers)
        rows.append((name, *(ms(means[stage]) for stage in STAGES)))
    return Grid(title=f"{title}: mean ms", columns=("", *STAGES), rows=tuple(rows))


def loads(found: Mapping[str, Loads], stayed: int) -> Grid:
    """What the tiers did, by what was going on; `stayed` files were in the page cache when they should not."""
    steps = list(dict.fromkeys(stage for each in found.values() for stage in each.seconds))
    rows = tuple(
        (name, str(each.ended.get("disk", 0)), str(each.ended.get("host", 0)), *(ms(each.mean(step)) for step in steps))
        for name, each in found.items()
    )
    columns = ("", "from disk", "to the device", *(f"{step}, ms" for step in steps))
    title = f"Loads, and the mean of their stages; files that could not be taken out of the page cache: {stayed}"
    return Grid(title=title, columns=columns, rows=rows)
