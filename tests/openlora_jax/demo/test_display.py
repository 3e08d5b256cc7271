import io

import pytest
from rich.console import Console

from openlora_jax.demo.display import Answer, label, shown, side_by_side
from openlora_jax.demo.prompts import PROMPTS, ask


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [({}, "base model"), ({"sql": 1.0}, "sql"), ({"json": 0.6, "pirate": 0.4}, "0.6 json + 0.4 pirate")],
)
def test_label(adapters: dict[str, float], expected: str) -> None:
    assert label(adapters) == expected


@pytest.mark.parametrize(("width", "columns"), [(30, 1), (80, 2), (119, 2), (120, 3), (300, 3)])
def test_columns_that_fit(width: int, columns: int) -> None:
    grid = side_by_side([Answer(prompt) for prompt in PROMPTS], width)
    assert len(grid.columns) == columns
    assert grid.row_count == len(PROMPTS) // columns


def test_without_a_terminal_answers_come_one_after_the_other_as_they_are() -> None:
    answers = [Answer(ask("Who?", 8)), Answer(ask("Where?", 8, sql=1.0))]
    console = Console(file=io.StringIO(), width=80)
    with shown(answers, console):
        answers[0].text = "[bold]me[/bold]"
        answers[1].text = "here"
    assert console.file.getvalue() == "\n[base model] Who?\n[bold]me[/bold]\n\n[sql] Where?\nhere\n"  # type: ignore[attr-defined]


def test_on_a_terminal_the_last_frame_has_everything() -> None:
    answers = [Answer(ask("Who?", 8))]
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with shown(answers, console):
        answers[0].text = "me"
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(part in printed for part in ("base model", "Who?", "me"))
