"""An engine in this process."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from openlora_jax.cli.rows import Line, located
from openlora_jax.engine.request import Delta, Scored
from openlora_jax.inputs import GenerateInput, ScoreInput
from openlora_jax.outputs import Generation

if TYPE_CHECKING:
    from openlora_jax.llm import LLM


class LocalSession:
    """Every line is checked before the first one runs."""

    def __init__(self, llm: "LLM") -> None:
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


def check_adapters(store: str, lines: Sequence[Line[Any]]) -> None:
    """Looks every adapter up that lines name, which takes no engine. Raises UnknownAdapter; its note says where."""
    from openlora_jax.adapters.store import AdapterStore

    adapters = AdapterStore(store)
    for line in lines:
        with located(line.where):
            for item in line.row.mix:
                adapters.members(item.adapter)
