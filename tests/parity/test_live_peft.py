"""The same comparison without golden files: models and adapters of another seed, peft and transformers live."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.parity.cases import ADAPTERS, BASES, AdapterCase
from tests.parity.conftest import House
from tests.parity.goldens import BOUND, MOVED, Goldens, Row, max_difference

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from peft import LoraConfig, get_peft_model

from tests.parity.make_goldens.adapters import make_adapter
from tests.parity.make_goldens.bases import make_base
from tests.parity.make_goldens.oracle import load_adapter, load_base, load_mix, score

# The oracles' own deprecations are not ours to mend.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

SEED = 90210
FAMILIES = {
    f"{name}_{'tied' if tied else 'untied'}": replace(case, config=case.config | {"tie_word_embeddings": tied})
    for name, case in BASES.items()
    if name in ("llama", "mistral", "qwen2", "qwen3")
    for tied in (True, False)
}
ALL_LINEAR = AdapterCase(config={"r": 20, "lora_alpha": 10, "use_rslora": True, "target_modules": "all-linear"})

TRAINED_DIFFERENTLY: dict[str, dict[str, Any]] = {
    "monteclora": {"monteclora_config": {"num_samples": 2, "buffer_size": 2}},
    "velora": {"velora_config": {"num_groups": 8, "init_type": "random"}},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "stable"}},
}
"""What changes training alone: peft, too, serves what it saved as a plain LoRA."""


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, house: House, goldens: Goldens, tmp_path: Path) -> None:
    base = tmp_path / name
    make_base(FAMILIES[name], base, SEED)
    plain = score(load_base(base), goldens.rows)
    assert max_difference(house.score(base, goldens.rows), plain) <= BOUND
    adapter = tmp_path / f"live_{name}"
    make_adapter(ALL_LINEAR, base, adapter, SEED)
    house.install(adapter.name, adapter, base)
    adapted = score(load_adapter(base, adapter), goldens.rows)
    assert max_difference(adapted, plain) >= MOVED
    assert max_difference(house.score(base, goldens.rows, {adapter.name: 1.0}), adapted) <= BOUND


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("bases")
    for name in ("llama", "llama_tied"):
        make_base(BASES[name], directory / f"live_{name}", SEED + 1)
    return {name: directory / f"live_{name}" for name in ("llama", "llama_tied")}


@pytest.mark.parametrize("name", [name for name, case in ADAPTERS.items() if case.base in ("llama", "llama_tied")])
def test_feature(name: str, bases: dict[str, Path], house: House, goldens: Goldens, tmp_path: Path) -> None:
    base, adapter = bases[ADAPTERS[name].base], tmp_path / f"live_{name}"
    make_adapter(ADAPTERS[name], base, adapter, SEED)
    house.install(adapter.name, adapter, base)
    adapted = score(load_adapter(base, adapter), goldens.rows)
    assert max_difference(house.score(base, goldens.rows), adapted) >= MOVED
    if not ADAPTERS[name].is_alone:
        assert max_difference(house.score(base, goldens.rows, {adapter.name: 2.0}), adapted) >= MOVED
    assert max_difference(house.score(base, goldens.rows, {adapter.name: 1.0}), adapted) <= BOUND


@pytest.mark.parametrize("name", TRAINED_DIFFERENTLY)
def test_trained_differently(name: str, bases: dict[str, Path], house: House, goldens: Goldens, tmp_path: Path) -> None:
    case = AdapterCase(config={"r": 6, "lora_alpha": 9, "target_modules": "all-linear", **TRAINED_DIFFERENTLY[name]})
    base, adapter = bases["llama"], tmp_path / f"live_{name}"
    make_adapter(case, base, adapter, SEED)
    house.install(adapter.name, adapter, base)
    adapted = score(load_adapter(base, adapter), goldens.rows)
    assert max_difference(house.score(base, goldens.rows), adapted) >= MOVED
    assert max_difference(house.score(base, goldens.rows, {adapter.name: 1.0}), adapted) <= BOUND


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_initial_adapter(
    initialisation: Literal["pissa", "olora"], bases: dict[str, Path], house: House, goldens: Goldens, tmp_path: Path
) -> None:
    torch.manual_seed(SEED)
    config = LoraConfig(r=6, lora_alpha=9, target_modules=["q_proj", "down_proj"], init_lora_weights=initialisation)
    model = get_peft_model(load_base(bases["llama"]), config)
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1 + 0.5 * torch.randn(parameter.shape))
    adapter = tmp_path / f"live_{initialisation}"
    model.save_pretrained(adapter)
    house.install(adapter.name, adapter, bases["llama"], tmp_path / "initial")
    adapted = score(model.eval(), goldens.rows)
    assert max_difference(house.score(bases["llama"], goldens.rows), adapted) >= MOVED
    assert max_difference(house.score(bases["llama"], goldens.rows, {adapter.name: 1.0}), adapted) <= BOUND


def test_alora_scores_as_peft_generates(bases: dict[str, Path], house: House, goldens: Goldens, tmp_path: Path) -> None:
    """Forced to say what is scored, the invocation once more in it; peft's forward pass would start anew there."""
    adapter = tmp_path / "live_alora_forced"
    make_adapter(ADAPTERS["alora"], bases["llama"], adapter, SEED)
    house.install(adapter.name, adapter, bases["llama"])
    model, prompt = load_adapter(bases["llama"], adapter), goldens.rows[5].prompt_ids
    row = Row(prompt, (*goldens.rows[5].completion_ids[:4], 239, 7, 100))
    forced = dict(enumerate(row.completion_ids, start=len(prompt)))
    generated = model.generate(
        input_ids=torch.tensor([prompt]),
        max_new_tokens=len(row.completion_ids),
        do_sample=False,
        eos_token_id=None,
        prefix_allowed_tokens_fn=lambda _, ids: [forced[len(ids)]],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = [each.double().log_softmax(-1)[0] for each in generated.logits]
    wanted = [float(each[token]) for each, token in zip(logprobs, row.completion_ids, strict=True)]
    assert max_difference(house.score(bases["llama"], (row,), {adapter.name: 1.0}), [wanted]) <= BOUND
    assert max_difference(score(model, (row,)), [wanted]) >= MOVED / 10


def test_mix(bases: dict[str, Path], house: House, goldens: Goldens, tmp_path: Path) -> None:
    weights = {"rank_17": 0.7, "embed_head": -0.3, "pattern_regex": 0.4}
    for name in weights:
        make_adapter(ADAPTERS[name], bases["llama"], tmp_path / f"mixed_{name}", SEED + 2)
        house.install(f"mixed_{name}", tmp_path / f"mixed_{name}", bases["llama"])
    mix = {f"mixed_{name}": weight for name, weight in weights.items()}
    wanted = score(load_mix(bases["llama"], {tmp_path / name: weight for name, weight in mix.items()}), goldens.rows)
    assert max_difference(house.score(bases["llama"], goldens.rows, mix), wanted) <= BOUND
    assert max_difference(house.score(bases["llama"], goldens.rows), wanted) >= MOVED
