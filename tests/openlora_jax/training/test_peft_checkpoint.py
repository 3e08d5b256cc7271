"""From training to serving: what is written, converted and served is what was trained."""

from pathlib import Path

import numpy as np
import pytest

from convert.adapter import convert_adapter
from openlora_jax import LLM
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.errors import CannotInstall
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.training.adapter import TrainedAdapter
from openlora_jax.training.data import Example, pack
from openlora_jax.training.peft_checkpoint import write_peft
from tests.openlora_jax.tiny import MODEL
from tests.openlora_jax.training.conftest import RECIPE, Loss, Training


def test_a_trained_adapter_is_served_and_makes_its_completions_likely(
    training: Training, loss: Loss, examples: list[Example], tiny_llm: LLM, tiny_base: Path, tmp_path: Path
) -> None:
    adapter, _, _ = training
    write_peft(tmp_path / "mine", adapter, RECIPE, "random")
    conversion = convert_adapter(tmp_path / "mine", BaseManifest.read(tiny_base))
    assert isinstance(tiny_llm.store, AdapterStore)
    tiny_llm.store.install("trained", conversion.manifest, conversion.tensors)
    prompts = [each.tokens[: each.completion] for each in examples]
    completions = [each.tokens[each.completion :] for each in examples]
    before, after = (
        np.mean([logprob for each in tiny_llm.score(prompts, completions, name) for logprob in each.logprobs])
        for name in (None, "trained")
    )
    tiny_llm.store.remove("trained")
    assert after > before + 1
    assert after == pytest.approx(-float(loss(adapter, pack(examples, 3))[0]), abs=1e-4)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotInstall, match="not an empty directory"):
        write_peft(tmp_path, TrainedAdapter.create(MODEL, RECIPE), RECIPE, "random")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
