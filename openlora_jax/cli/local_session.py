"""An engine in this process."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax

from openlora_jax.cli.rows import Line, located, progress_bar
from openlora_jax.config import EngineConfig
from openlora_jax.engine.request import Delta, Scored
from openlora_jax.inputs import GenerateInput, ScoreInput
from openlora_jax.llm import LLM
from openlora_jax.outputs import Generation


def load(base: str, store: str | None, config: EngineConfig) -> LLM:
    """Loads a base model and compiles its programs behind a progress bar; the next start finds them in a cache."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "openlora-jax"))
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        return LLM(base, store, config=config, progress=show)


class LocalSession:
    """Every line is checked before the first one runs."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def __enter__(self) -> "LocalSession":
        return self

    def __exit__(self, *error: Any) -> None:
        self._llm.close()

    def generate(self, lines: Sequence[Line[GenerateInput]]) -> Iterator[Generation]:
        return cast(Iterator[Generation], self._run(lines))

    def score(self, lines: Sequence[Line[ScoreInput]]) -> Iterator[Scored]:
        return cast(Iterator[Scored], self._run(lines))

    def stream(self, row: GenerateInput) -> Iterator[str]:
        """The text of the first sample as it comes."""
        events = self._llm.engine.submit(row.request(self._llm.tokenizer))
        try:
            for event in events:
                if isinstance(event, Delta) and event.index == 0:
                    yield event.text
        finally:
            events.cancel()

    def _run(self, lines: Sequence[Line[GenerateInput]] | Sequence[Line[ScoreInput]]) -> Iterator[Generation | Scored]:
        requests = []
        for line in lines:
            with located(line.where):
                request = line.row.request(self._llm.tokenizer)
                self._llm.check(request)
            requests.append(request)
        return self._llm.run(requests)
