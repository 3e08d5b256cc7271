"""An adapter beside what it was before training: the difference is what counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.adapter import convert_adapter
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import Array, Save, delta, linear, lora, write_checkpoint


def trained(before: dict[str, Array]) -> dict[str, Array]:
    generator = np.random.default_rng(9)
    change = np.float32(0.01)
    return {key: each + change * generator.standard_normal(each.shape, np.float32) for key, each in before.items()}


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora", "corda"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_what_changed_is_of_twice_the_rank(
    save: Save, base: BaseManifest, tmp_path: Path, name: str, dtype: Any, bound: float
) -> None:
    before = lora()
    after = trained(before)
    write_checkpoint(tmp_path / "initial", before, init_lora_weights=name, lora_alpha=3)
    found = convert_adapter(
        save(after, init_lora_weights=name, lora_alpha=3), base, dtype, initial=tmp_path / "initial"
    )
    assert found.manifest.modules["q_proj"].rank == 8
    assert found.report["modules"]["q_proj"]["ranks"] == [8]
    prefix = linear("q_proj", 1)
    now, then = (
        tensors[f"{prefix}.lora_B.weight"].astype(np.float64) @ tensors[f"{prefix}.lora_A.weight"]
        for tensors in (after, before)
    )
    due = 0.75 * (now - then)
    assert np.abs(delta(found.tensors, "q_proj", 1) - due).max() <= bound * np.abs(due).max()


@pytest.mark.parametrize(
    ("tensors", "fields", "problem"),
    [
        (lora(("q_proj",)), {}, "has other modules than the trained adapter"),
        (lora(rank=5), {"r": 5}, "has another rank or scale"),
        (lora(), {"lora_alpha": 9}, "has another rank or scale"),
    ],
    ids=["modules", "rank", "scale"],
)
def test_another_initial_adapter(
    save: Save, base: BaseManifest, tmp_path: Path, tensors: dict[str, Array], fields: dict[str, Any], problem: str
) -> None:
    write_checkpoint(tmp_path / "initial", tensors, **fields)
    with pytest.raises(BadCheckpoint, match=problem):
        convert_adapter(save(lora(), init_lora_weights="pissa"), base, initial=tmp_path / "initial")


def test_a_rank_that_cannot_be_doubled(save: Save, base: BaseManifest, tmp_path: Path) -> None:
    tensors = lora(("v_proj",), 129)
    write_checkpoint(tmp_path / "initial", tensors, r=129)
    with pytest.raises(BadCheckpoint, match="has rank 129, and twice of that is more than 256"):
        convert_adapter(save(trained(tensors), r=129), base, initial=tmp_path / "initial")


def test_not_beside_a_bias(save: Save, base: BaseManifest, tmp_path: Path) -> None:
    biases = {f"{linear('v_proj', layer)}.lora_B.bias": np.ones(12, np.float32) for layer in range(3)}
    write_checkpoint(tmp_path / "initial", lora())
    with pytest.raises(UnsupportedFeature, match="an initial adapter beside"):
        convert_adapter(save(lora(("v_proj",)) | biases, lora_bias=True), base, initial=tmp_path / "initial")


def test_an_unchanged_adapter_changes_nothing(save: Save, base: BaseManifest, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "initial", lora())
    with pytest.raises(BadCheckpoint, match="every delta is zero"):
        convert_adapter(save(lora(), init_lora_weights="pissa"), base, initial=tmp_path / "initial")
