"""The demo's questions, answered greedily by the engine on a GPU and on the CPU beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from openlora_jax.demo.prompts import PROMPTS, DemoPrompt
from tests.system.compare import before_a_tie

Run = Callable[..., CompletedProcess[str]]
"""Starts `openlora` with arguments, and environment variables by name."""

GREEDY = {"max_tokens": 32, "temperature": 0, "ignore_eos": True, "logprobs": 2}


def answered(run: Run, arguments: Sequence[str], folder: Path, **environment: str) -> list[dict[str, Any]]:
    """The demo's output lines from a run with this environment.

    Raises:
        RuntimeError: it ended with another status than 0; the end of what it wrote.
    """
    rows, output = folder / "demo.jsonl", folder / "answers.jsonl"
    rows.write_text("".join(json.dumps(row(each)) + "\n" for each in PROMPTS))
    done = run("generate", *arguments, "--input", str(rows), "--output", str(output), **environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return [json.loads(line) for line in output.read_text().splitlines()]


def row(question: DemoPrompt) -> dict[str, Any]:
    """A question of the demo as a line of JSON."""
    mix = [{"adapter": name, "weight": weight} for name, weight in question.adapters.items()]
    return {"messages": list(question.messages), **GREEDY, **({"mix": mix} if mix else {})}


def differences(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where answers are not the expected ones, before the first token whose second best is about as good."""
    problems = []
    for nth, (mine, other) in enumerate(zip(found, expected, strict=True), start=1):
        [sample], [reference] = mine["outputs"], other["outputs"]
        sure = sure_tokens(reference)
        if sample["token_ids"][:sure] != reference["token_ids"][:sure]:
            problems.append(f"answer {nth}: {sample['text']!r} in the place of {reference['text']!r}")
    return problems


def sure_tokens(sample: Mapping[str, Any]) -> int:
    """Tokens before the first tie."""
    return before_a_tie([[each["logprob"] for each in token["top"]] for token in sample["logprobs"]])
