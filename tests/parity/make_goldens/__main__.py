"""`python -m tests.parity.make_goldens`: makes every checkpoint and its golden log-probabilities anew."""

import shutil
from pathlib import Path

import numpy as np
import torch

from tests.parity.cases import ADAPTERS, BASES, ENSEMBLES, LENGTHS, MIXES, VOCABULARY
from tests.parity.goldens import (
    BOUND,
    GOLDENS,
    MOVED,
    Continuation,
    Goldens,
    Row,
    Scores,
    adapter_directory,
    base_directory,
    max_difference,
)
from tests.parity.make_goldens.adapters import make_adapter
from tests.parity.make_goldens.bases import make_base
from tests.parity.make_goldens.oracle import (
    continue_together,
    load_adapter,
    load_base,
    load_mix,
    lora_layers,
    saved_modules,
    score,
    token_rows,
)

SEED = 20250
CONTINUED = 6
"""Tokens of an ensemble after each prompt."""
NOTICED = 3 * BOUND
"""Losing any one adapted module, or shuffling any one base tensor, moves some log-probability by at least this much."""


def main() -> None:
    torch.set_num_threads(2)
    for part in ("bases", "adapters"):
        shutil.rmtree(GOLDENS / part, ignore_errors=True)
    rows = make_rows()
    bases = {name: _base(name, SEED + index, rows) for index, name in enumerate(BASES)}
    adapters = {name: _adapter(name, SEED + 100 + index, rows, bases) for index, name in enumerate(ADAPTERS)}
    mixes = {name: _mix(name, rows, bases) for name in MIXES}
    Goldens(rows, bases, adapters, mixes, {name: _ensemble(name, rows) for name in ENSEMBLES}).save()


def make_rows() -> tuple[Row, ...]:
    generator = np.random.default_rng(SEED)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, VOCABULARY, count).tolist())

    return tuple(Row(ids(prompt), ids(completion)) for prompt, completion in LENGTHS)


def _base(name: str, seed: int, rows: tuple[Row, ...]) -> Scores:
    directory = base_directory(name)
    make_base(BASES[name], directory, seed)
    model = load_base(directory)
    scores = score(model, rows)
    for tensor, parameter in model.named_parameters():
        kept = parameter.data.clone()
        parameter.data.copy_(kept.roll(1, -1))
        _require(f"{name} {tensor}", max_difference(score(model, rows), scores), NOTICED)
        parameter.data.copy_(kept)
    if "rope_parameters" in BASES[name].config:
        plain = load_base(directory, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
        _require(f"{name} rope", max_difference(score(plain, rows), scores), MOVED)
    return scores


def _adapter(name: str, seed: int, rows: tuple[Row, ...], bases: dict[str, Scores]) -> Scores:
    case = ADAPTERS[name]
    base, directory = base_directory(case.base), adapter_directory(name)
    make_adapter(case, base, directory, seed)
    model = load_adapter(base, directory)
    scores = score(model, rows)
    _require(name, max_difference(scores, bases[case.base]), MOVED)
    for module_name, module in lora_layers(model).items():
        scale = module.scaling["default"]
        module.scaling["default"] = 0.0
        _require(f"{name} {module_name}", max_difference(score(model, rows), scores), NOTICED)
        module.scaling["default"] = scale
    for trained in token_rows(model):
        kept = trained.data.clone()
        trained.data.copy_(kept.roll(1, 0))
        _require(f"{name} rows", max_difference(score(model, rows), scores), NOTICED)
        trained.data.copy_(kept)
    for module_name, module in saved_modules(model).items():
        kept = module.weight.data.clone()
        module.weight.data.copy_(kept.roll(1, 0))
        _require(f"{name} {module_name}", max_difference(score(model, rows), scores), NOTICED)
        module.weight.data.copy_(kept)
    return scores


def _mix(name: str, rows: tuple[Row, ...], bases: dict[str, Scores]) -> Scores:
    case = MIXES[name]
    adapters: dict[Path, float] = {adapter_directory(adapter): weight for adapter, weight in case.adapters.items()}
    scores = score(load_mix(base_directory(case.base), adapters), rows)
    _require(name, max_difference(scores, bases[case.base]), MOVED)
    return scores


def _ensemble(name: str, rows: tuple[Row, ...]) -> list[Continuation]:
    case = ENSEMBLES[name]
    mixes = [{adapter_directory(adapter): weight for adapter, weight in mix.items()} for mix in case.members]
    members = [load_mix(base_directory(case.base), mix) for mix in mixes]
    continued = []
    for row in rows:
        tokens, logprobs, margin = continue_together(members, case.weights, case.method, row.prompt_ids, CONTINUED)
        _require(f"{name} after {len(row.prompt_ids)} tokens", margin, NOTICED)
        continued.append(Continuation(tuple(tokens), tuple(logprobs)))
    return continued


def _require(what: str, moved: float, least: float) -> None:
    if moved < least:
        raise SystemExit(f"{what} moves log-probabilities by {moved:.2g} only, {least:.2g} is needed")


if __name__ == "__main__":
    main()
