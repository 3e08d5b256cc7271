"""Exported adapters load in peft and score there what the originals score, whatever their ranks, scales and targets."""

from pathlib import Path

import pytest

from convert.adapter import BaseWeights, convert_adapter
from convert.base import convert_base
from convert.merge import export_adapter
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.merge.conftest import ignore
from tests.parity.cases import ADAPTERS
from tests.parity.goldens import MOVED, Goldens, adapter_directory, base_directory, max_difference

pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.parity.make_goldens.oracle import load_adapter, score

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

BOUND = 1e-4


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    found = {case.base: root / case.base for case in ADAPTERS.values()}
    for name, path in found.items():
        convert_base(base_directory(name), path, "float32", ignore)
    return found


@pytest.mark.parametrize("name", [name for name, case in ADAPTERS.items() if not case.config.get("use_dora")])
def test_an_export_scores_as_the_original(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    goldens, base = Goldens.load(), ADAPTERS[name].base
    manifest = BaseManifest.read(bases[base])
    converted = convert_adapter(adapter_directory(name), manifest, weights=BaseWeights(bases[base], manifest))
    export_adapter(converted.manifest, converted.tensors, tmp_path / "out")
    scores = score(load_adapter(base_directory(base), tmp_path / "out"), goldens.rows)
    assert max_difference(scores, goldens.adapters[name]) <= BOUND
    assert max_difference(scores, goldens.bases[base]) >= MOVED
