"""What each step may cost on each chip. `python -m tests.gpu.budget` measures anew and writes `budget.json`."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.gpu.cases import CHIPS, KINDS, Case, Kind, Variant, compiled, compiled_alone
from tests.gpu.facts import Kernel

Figures = Mapping[str, int | str]
"""Name -> how much of it, or of which kind it is."""

FILE = Path(__file__).with_name("budget.json")
WORKLOAD = "llama-3.1-8b"
INT4 = "llama-3.1-8b int4 in groups of 128, with offsets"
STEPS: tuple[tuple[str, Kind, str], ...] = (
    *((chip, kind, WORKLOAD) for chip in CHIPS for kind in KINDS),
    *(("h100", kind, INT4) for kind in KINDS),
)
"""Chip, step and workload. A quantised base differs in its products, which are compiled alone for every chip."""
DEPTHS = SHALLOW, DEEP = 2, 4
"""Layers; the difference of the two programs is what two layers cost."""
TOLERANCE = 0.05
"""How much more than its budget a quantity may be, so that not every small change is one of the budget. Launches and
spilled bytes may not be more at all."""


def main() -> None:
    budget = {_name(*step): figures(*step) for step in STEPS}
    budget |= {f"{chip} alone": of_alone(chip) for chip in CHIPS}
    FILE.write_text(json.dumps(budget, indent=2) + "\n")


def read(chip: str, kind: Kind, workload: str = WORKLOAD) -> Figures:
    """What a step is allowed."""
    return _read(_name(chip, kind, workload))


def read_alone(chip: str) -> Figures:
    """What kernels that only some models or adapters need are allowed."""
    return _read(f"{chip} alone")


def _name(chip: str, kind: Kind, workload: str) -> str:
    return f"{chip} {kind}{workload.removeprefix(WORKLOAD)}"


def _read(name: str) -> Figures:
    budget: Figures = json.loads(FILE.read_text())[name]
    return budget


def figures(chip: str, kind: Kind, workload: str = WORKLOAD) -> Figures:
    """What is so: the program's launches and memory, then what each of its kernels takes."""
    found: dict[str, int | str] = dict(_of_layers(chip, kind, workload))
    if (kind, workload) == ("decode", WORKLOAD):
        found |= of_adapters(chip)
    return found | _of_kernels(compiled(Case(chip, kind, workload, DEEP)).kernels)


def of_alone(chip: str) -> Figures:
    """What kernels take that only some models or adapters need."""
    return _of_kernels(compiled_alone(chip))


def _of_kernels(kernels: Mapping[str, Kernel]) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for name, kernel in kernels.items():
        found |= {
            f"{name}: registers": kernel.registers,
            f"{name}: bytes spilled": kernel.spilled,
            f"{name}: bytes shared": kernel.shared,
            f"{name}: mma": kernel.mma,
        }
    return found


def of_adapters(chip: str, variant: Variant = "whole") -> dict[str, int]:
    """What a decode step has for its adapters: the difference to the base model's."""
    step, base = _of_layers(chip, "decode", WORKLOAD, variant), _of_layers(chip, "decode", WORKLOAD, "base")
    return {f"adapters: {name}": step[name] - base[name] for name in step}


def _of_layers(chip: str, kind: Kind, workload: str, variant: Variant = "whole") -> dict[str, int]:
    """A step's launches and temporary bytes: of each layer, rounded up, and of all else."""
    shallow, deep = (compiled(Case(chip, kind, workload, layers, variant)) for layers in DEPTHS)
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
