"""Steps of training against torch and peft: the same data from the same beginning."""

from dataclasses import replace
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from convert.base import convert_base
from openlora_jax.llm import resolve_ops
from openlora_jax.model.parameters import Parameters
from openlora_jax.training.adapter import Factors, TrainedAdapter
from openlora_jax.training.data import Example, pack
from openlora_jax.training.peft_checkpoint import write_peft
from openlora_jax.training.recipe import MAX_NORM, Recipe
from openlora_jax.training.train import compiled_step
from tests.parity.goldens import Row, base_directory

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from tests.parity.make_goldens.oracle import load_adapter, score

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("loose_dtypes")]

RECIPE = Recipe(rank=5, alpha=7.0, steps=3, learning_rate=2e-3)
EXAMPLES = [Example(tuple(range(5, 25)), 12), Example(tuple(range(40, 49)), 3), Example(tuple(range(90, 120)), 29)]


@pytest.fixture(params=["llama", "qwen3_tied"])
def base(request: pytest.FixtureRequest) -> Path:
    return base_directory(request.param)


def test_steps_are_those_of_torch_and_peft(base: Path, tmp_path: Path) -> None:
    report = convert_base(base, tmp_path / "base", "float32", lambda stage, done, total: None)
    model = report.manifest.config
    parameters = Parameters.read(tmp_path / "base", model, "float32")
    fresh = TrainedAdapter.create(model, RECIPE)
    generator = np.random.default_rng(0)
    adapter = replace(
        fresh,
        factors={
            module: Factors(each.a, jnp.asarray(generator.normal(0, 0.05, each.b.shape), jnp.float32))
            for module, each in fresh.factors.items()
        },
    )
    write_peft(tmp_path / "begun", adapter, RECIPE, "base")
    peft = load_adapter(base, tmp_path / "begun")
    optimizer = RECIPE.optimizer()
    step, state = compiled_step(model, resolve_ops("cpu"), optimizer), optimizer.init(adapter)
    losses = []
    for _ in range(RECIPE.steps):
        adapter, state, loss = step(adapter, state, parameters, pack(EXAMPLES, 4))
        losses.append(float(loss))
    np.testing.assert_allclose(losses, torch_steps(peft), atol=1e-4)
    write_peft(tmp_path / "ours", adapter, RECIPE, "base")
    ours = {name: each.detach().numpy() for name, each in factors(load_adapter(base, tmp_path / "ours")).items()}
    chex.assert_trees_all_close(ours, {name: each.detach().numpy() for name, each in factors(peft).items()}, atol=1e-5)
    before, after = (
        np.mean(score(load_adapter(base, tmp_path / name), [Row(EXAMPLES[0].tokens[:12], EXAMPLES[0].tokens[12:])]))
        for name in ("begun", "ours")
    )
    assert after > before + 0.1


def factors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if "lora_" in name}


def torch_steps(model: torch.nn.Module) -> list[float]:
    """The losses of the recipe's steps, written down for torch: clipping, warm-up, cosine, AdamW."""
    learned = list(factors(model).values())
    for each in learned:
        each.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned, weight_decay=0.0)
    losses = []
    for rate in (1 / 3, 2 / 3, 1.0):  # two steps of warm-up out of three, then the peak
        optimizer.param_groups[0]["lr"] = RECIPE.learning_rate * rate
        surprises = []
        for example in EXAMPLES:
            ids = torch.tensor([example.tokens])
            logits = model(input_ids=ids, use_cache=False).logits[0, example.completion - 1 : -1]
            surprises.append(torch.nn.functional.cross_entropy(logits, ids[0, example.completion :], reduction="none"))
        loss = torch.cat(surprises).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, MAX_NORM)
        optimizer.step()
        losses.append(loss.item())
    return losses
