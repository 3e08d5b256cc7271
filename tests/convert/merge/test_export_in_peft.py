"""Exported adapters load in peft and score there what the originals score, whatever their ranks, scales and kinds."""

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
    """Converted."""
    root = tmp_path_factory.mktemp("bases")
    names = {case.base for case in ADAPTERS.values()}
    for name in names:
        convert_base(base_directory(name), root / name, "float32", ignore)
    return {name: root / name for name in names}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_export_scores_as_the_original(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    goldens, case = Goldens.load(), ADAPTERS[name]
    manifest = BaseManifest.read(bases[case.base])
    weights = BaseWeights(bases[case.base], manifest)
    converted = convert_adapter(adapter_directory(name), manifest, weights=weights)
    export_adapter(converted.manifest, converted.tensors, tmp_path / "out", weights)
    scores = score(load_adapter(base_directory(case.base), tmp_path / "out"), goldens.rows)
    assert max_difference(scores, goldens.adapters[name]) <= BOUND
    assert max_difference(scores, goldens.bases[case.base]) >= MOVED
