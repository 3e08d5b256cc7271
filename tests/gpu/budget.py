"""What each step may cost on each chip. `python -m tests.gpu.budget` measures anew and writes `budget.json`."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.gpu.cases import CHIPS, KINDS, Case, Kind, Variant, compiled

Figures = Mapping[str, int | str]
"""Name -> how much of it, or of which kind it is."""

FILE = Path(__file__).with_name("budget.json")
WORKLOAD = "llama-3.1-8b"
DEPTHS = SHALLOW, DEEP = 2, 4
"""Layers; the difference of the two programs is what two layers cost."""
TOLERANCE = 0.05
"""How much more than its budget a quantity may be, so that not every small change is one of the budget. Launches and
spilled bytes may not be more at all."""


def main() -> None:
    budget = {f"{chip} {kind}": figures(chip, kind) for chip in CHIPS for kind in KINDS}
    FILE.write_text(json.dumps(budget, indent=2) + "\n")


def read(chip: str, kind: Kind) -> Figures:
    """What is allowed."""
    budget: Figures = json.loads(FILE.read_text())[f"{chip} {kind}"]
    return budget


def figures(chip: str, kind: Kind) -> Figures:
    """What is so: the program's launches and memory, then what each of its kernels takes."""
    found: dict[str, int | str] = {**_of_layers(chip, kind), **(of_adapters(chip) if kind == "decode" else {})}
    for name, kernel in compiled(Case(chip, kind, WORKLOAD, DEEP)).kernels.items():
        found |= {
            f"{name}: registers": kernel.registers,
            f"{name}: bytes spilled": kernel.spilled,
            f"{name}: bytes shared": kernel.shared,
            f"{name}: mma": kernel.mma,
        }
    return found


def of_adapters(chip: str, variant: Variant = "whole") -> dict[str, int]:
    """What a decode step has for its adapters: the difference to the base model's."""
    step, base = _of_layers(chip, "decode", variant), _of_layers(chip, "decode", "base")
    return {f"adapters: {name}": step[name] - base[name] for name in step}


def _of_layers(chip: str, kind: Kind, variant: Variant = "whole") -> dict[str, int]:
    """A step's launches and temporary bytes: of each layer, rounded up, and of all else."""
    shallow, deep = (compiled(Case(chip, kind, WORKLOAD, layers, variant)) for layers in DEPTHS)
    launches = -(-(deep.launches - shallow.launches) // (DEEP - SHALLOW))
    temporary = -(-(deep.temporary - shallow.temporary) // (DEEP - SHALLOW))
    return {
        "launches of a layer": launches,
        "launches beside the layers": shallow.launches - SHALLOW * launches,
        "temporary bytes of a layer": temporary,
        "temporary bytes beside the layers": shallow.temporary - SHALLOW * temporary,
    }


def breaches(figures: Figures, budget: Figures) -> list[str]:
    """Where figures are not within a budget; one that the other does not know is a breach as well."""
    names = sorted(figures.keys() | budget.keys())
    pairs = [(name, figures.get(name), budget.get(name)) for name in names]
    return [f"{name} {figure}, budget {limit}" for name, figure, limit in pairs if not _within(name, figure, limit)]


def _within(name: str, figure: int | str | None, limit: int | str | None) -> bool:
    if not isinstance(figure, int) or not isinstance(limit, int):
        return figure == limit
    exact = "launches" in name or "spilled" in name
    return figure <= limit + (0 if exact else TOLERANCE * abs(limit))


if __name__ == "__main__":
    main()
