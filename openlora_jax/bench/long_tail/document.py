"""One run as a document: what was measured, where, and every table; as JSON; as a page in Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openlora_jax.bench.long_tail.grid import Grid
from openlora_jax.bench.long_tail.workloads import Coldstart, Oversubscribe
from openlora_jax.bench.machine import line, machine, versions
from openlora_jax.llm import LLM


@dataclass(frozen=True, slots=True)
class Document:
    """Of one command.

    Attributes:
        command: its name.
        setup: everything that a reader needs to run the same again.
        results: every sample.
        grids: for a reader.
    """

    command: str
    setup: dict[str, Any]
    results: dict[str, Any]
    grids: Sequence[Grid]

    @property
    def heading(self) -> str:
        """Where it was measured, on what, and how long that took."""
        setup = self.setup
        workload = ", ".join(f"{key} {_text(value)}" for key, value in setup["workload"].items())
        adapters = setup["adapters"]
        targets = f"adapters on {', '.join(adapters['modules'])} in {adapters['dtype']}"
        return (
            f"{line(setup['machine'], setup['versions'])}; backend {setup['backend']}\n"
            f"{workload}; {targets}; took {setup['minutes']:.1f} minutes"
        )

    def markdown(self) -> str:
        parts = [f"# `openlora bench {self.command}`", self.heading.replace("\n", "\n\n")]
        return "\n\n".join([*parts, *(grid.markdown().rstrip("\n") for grid in self.grids)]) + "\n"


def setup(llm: LLM, workload: Coldstart | Oversubscribe, seconds: float) -> dict[str, Any]:
    """Of a run that took so long."""
    return {
        "workload": asdict(workload),
        "adapters": asdict(workload.fleet),
        "base_digest": llm.base_digest,
        "engine": llm.config.model_dump(),
        "backend": llm.backend,
        "machine": machine(),
        "versions": versions(),
        "minutes": seconds / 60,
    }


def _text(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
