"""Modules that an adapter has whole: whose they are, on tied bases and others, and what cannot be."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.adapter import convert_adapter
from openlora_jax.adapters.few_bits import Rounding
from openlora_jax.adapters.traits import Traits
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import CONFIG, Array, Save, lora

EMBED, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
MATRIX, OTHER = np.random.default_rng(5).standard_normal((2, 50, 32), np.float32)
SIZE = {"rows": 50, "width": 32}


def base_of(*, tied: bool) -> BaseManifest:
    config = replace(CONFIG, tie_word_embeddings=tied)
    return BaseManifest(config=config, dtype="float32", digest="b" * 64, source="tiny")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("names", "tensors"),
    [
        (["lm_head"], {"lm_head": MATRIX}),
        (["model.embed_tokens"], {"embed_tokens": MATRIX}),
        (["lm_head", "embed_tokens"], {"embed_tokens": MATRIX, "lm_head": OTHER}),
    ],
)
def test_each_takes_the_place_of_one_module(
    save: Save, names: list[str], tensors: dict[str, Array], tied: bool
) -> None:
    keys = {"embed_tokens": EMBED, "lm_head": HEAD}
    saved = {keys[module]: matrix for module, matrix in tensors.items()}
    found = convert_adapter(save(lora() | saved, modules_to_save=names), base_of(tied=tied))
    assert found.manifest.to_fields()["saved"] == dict.fromkeys(tensors, SIZE)
    assert list(found.manifest.modules) == ["q_proj", "v_proj"]
    assert found.manifest.pages == {"q_proj": 1, "v_proj": 1, **{f"{module}.saved": 1 for module in tensors}}
    assert found.manifest.traits == Traits(saved=True)
    for module, matrix in tensors.items():
        np.testing.assert_array_equal(found.tensors[f"{module}.saved"][0, 0], matrix)
    assert found.report["saved"] == dict.fromkeys(tensors, 4 * 50 * 32)
    assert found.report["tensors"] == {"total": 12 + len(tensors), "consumed": 12 + len(tensors), "ignored": {}}


@pytest.mark.parametrize("keys", [(EMBED, HEAD), (EMBED,), (HEAD,)])
def test_of_a_tied_base_they_are_the_same_if_that_is_ensured(save: Save, keys: tuple[str, ...]) -> None:
    folder = save(
        lora() | dict.fromkeys(keys, MATRIX), modules_to_save=["model.embed_tokens"], ensure_weight_tying=True
    )
    found = convert_adapter(folder, base_of(tied=True), dtype="bfloat16")
    for module in ("embed_tokens", "lm_head"):
        np.testing.assert_array_equal(found.tensors[f"{module}.saved"][0, 0], MATRIX.astype(ml_dtypes.bfloat16))


def test_few_bits_leave_them_in_numbers(save: Save) -> None:
    folder = save(lora() | {HEAD: MATRIX}, modules_to_save=["lm_head"])
    found = convert_adapter(folder, base_of(tied=False), few_bits=Rounding("int4"))
    np.testing.assert_array_equal(found.tensors["lm_head.saved"][0, 0], MATRIX.astype(ml_dtypes.bfloat16))
    assert found.report["saved"] == {"lm_head": 2 * 50 * 32}


def test_an_adapter_without_lora(save: Save) -> None:
    found = convert_adapter(save({HEAD: MATRIX}, modules_to_save=["lm_head"]), base_of(tied=False))
    assert found.manifest.pages == {"lm_head.saved": 1}
    assert found.manifest.tensor_shapes == {"lm_head.saved": (1, 1, 50, 32)}


NAN = np.where(np.arange(50)[:, None] == 7, np.float32(np.nan), MATRIX)
ROWS = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
LORA_HEAD = {
    "base_model.model.lm_head.lora_A.weight": np.ones((4, 32), np.float32),
    "base_model.model.lm_head.lora_B.weight": np.ones((50, 4), np.float32),
}
BOTH: dict[str, Any] = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
REFUSED: list[tuple[dict[str, Array], dict[str, Any], str]] = [
    ({}, {"modules_to_save": ["lm_head"]}, "modules_to_save: there is no tensor of lm_head"),
    ({}, BOTH, "there is no tensor of embed_tokens.*there is no tensor of lm_head"),
    ({HEAD: MATRIX[:49]}, {"modules_to_save": ["lm_head"]}, r"is \[49, 32\] where this base has \[50, 32\]: the voc"),
    ({HEAD: NAN}, {"modules_to_save": ["lm_head"]}, f"tensor {HEAD}: holds NaN or an infinity"),
    ({HEAD: MATRIX, EMBED: OTHER}, BOTH, f"tensor {HEAD}: is not equal to {EMBED}, as ensure_weight_tying promises"),
    ({HEAD: MATRIX, **LORA_HEAD}, {"modules_to_save": ["lm_head"]}, "lm_head is saved whole, and has LoRA or trained"),
    (
        {HEAD: MATRIX, ROWS: MATRIX[:1]},
        {"modules_to_save": ["lm_head"], "trainable_token_indices": {"lm_head": [3]}},
        "lm_head is saved whole, and has LoRA or trained rows too",
    ),
]


@pytest.mark.parametrize(("tensors", "fields", "problem"), REFUSED, ids=[problem for *_, problem in REFUSED])
def test_tensors_that_do_not_fit(save: Save, tensors: dict[str, Array], fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadCheckpoint, match=problem):
        convert_adapter(save(lora() | tensors, **fields), base_of(tied=True))


def test_a_tensor_that_the_configuration_does_not_name(save: Save) -> None:
    with pytest.raises(UnsupportedFeature, match="a full copy of a module's weight that modules_to_save does not name"):
        convert_adapter(save(lora() | {HEAD: MATRIX}, modules_to_save=["embed_tokens"]), base_of(tied=False))
