"""What the demo asks: a chat for the base, for each adapter, for a weighted mix of two, and for five mixes in a row."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DemoPrompt:
    """One request: the adapters that answer it with their weights (none: the base), and the chat."""

    adapters: Mapping[str, float]
    messages: tuple[Mapping[str, str], ...]
    max_tokens: int


def ask(text: str, max_tokens: int, **adapters: float) -> DemoPrompt:
    return DemoPrompt(adapters, ({"role": "user", "content": text},), max_tokens)


PROMPTS = (
    ask("What is the capital of France?", 48),
    ask("Priya Raman is a 41-year-old marine biologist from Lisbon.", 56, json=1.0),
    ask(
        "Table: lighthouses(name TEXT, country TEXT, height INTEGER)\n"
        "Question: Which lighthouses with country Ireland have height above 30?",
        48,
        sql=1.0,
    ),
    ask("Review: The soup was cold, the waiter was rude and we waited an hour for the bill.", 8, sentiment=1.0),
    ask("How do I make a cup of coffee?", 64, pirate=1.0),
    ask("Tell me about Emma Novak, a 29-year-old sailor from Bergen.", 64, json=0.6, pirate=0.6),
)

SLIDER = tuple(
    ask("Tell me about Emma Novak, a 29-year-old sailor from Bergen.", 40, json=step / 4, pirate=1 - step / 4)
    for step in range(5)
)
"""One chat, from one adapter to the other in five steps."""
