"""How the demo shows its answers: side by side while they come on a terminal, one after the other elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from openlora_jax.demo.prompts import DemoPrompt

PANEL_WIDTH = 40
"""Of the narrowest panel, in characters."""


@dataclass(slots=True)
class Answer:
    """What has come so far for one prompt."""

    prompt: DemoPrompt
    text: str = ""
    tokens: int = 0


@contextmanager
def shown(answers: Sequence[Answer], console: Console) -> Iterator[None]:
    """Shows the answers while the block fills them."""
    if console.is_terminal:
        with Live(get_renderable=lambda: side_by_side(answers, console.width), console=console, refresh_per_second=8):
            yield
    else:
        yield
        console.print(Group(*map(section, answers)))


def side_by_side(answers: Sequence[Answer], width: int) -> Table:
    """As many columns as fit into `width` characters."""
    columns = max(1, min(3, width // PANEL_WIDTH))
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    for first in range(0, len(answers), columns):
        grid.add_row(*map(panel, answers[first : first + columns]))
    return grid


def panel(answer: Answer) -> Panel:
    return Panel(
        Group(Text(question(answer.prompt), "dim"), "", Text(answer.text)), title=label(answer.prompt.adapters)
    )


def section(answer: Answer) -> Text:
    return Text(f"\n[{label(answer.prompt.adapters)}] {question(answer.prompt)}\n{answer.text}")


def question(prompt: DemoPrompt) -> str:
    return prompt.messages[-1]["content"]


def label(adapters: Mapping[str, float]) -> str:
    match list(adapters):
        case []:
            return "base model"
        case [name]:
            return name
    return " + ".join(f"{weight:g} {name}" for name, weight in adapters.items())
