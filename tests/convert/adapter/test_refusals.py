"""Bad input: each case names the file, the tensor or field, and the limit; nothing is guessed."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.adapter import convert_adapter
from openlora_jax.errors import BadCheckpoint, OpenLoraError, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import Array, Save, linear, lora

Q0 = linear("q_proj", 0)

FEATURES: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True, "lora_bias": True}, "DoRA .* with lora_bias"),
    ({"use_dora": True, "alora_invocation_tokens": [1]}, "DoRA .* with alora_invocation_tokens"),
    ({"bias": "all"}, "bias = all"),
    ({"bias": "lora_only"}, "bias = lora_only"),
    ({"modules_to_save": ["lm_head", "score"]}, "a full copy of 'score'"),
    ({"modules_to_save": ["lm_head"], "alora_invocation_tokens": [1]}, "aLoRA with modules_to_save"),
    ({"trainable_token_indices": [1], "alora_invocation_tokens": [1]}, "aLoRA with trained token rows"),
    ({"target_parameters": ["experts.w"]}, "target_parameters"),
    ({"use_qalora": True}, "QALoRA"),
    ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
    ({"kasa_config": {"beta": 1}}, "KaSA"),
    ({"arrow_config": {"top_k": 2}}, "Arrow"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer replication"),
    ({"megatron_config": {"x": 1}}, "Megatron"),
    ({"loftq_config": {"loftq_bits": 4}}, "LoftQ"),
    *(({"init_lora_weights": init}, f"init_lora_weights = {init}") for init in ("pissa", "pissa_niter_4", "olora")),
    *(({"init_lora_weights": init}, f"init_lora_weights = {init}") for init in ("corda", "loftq", "unheard-of")),
    ({"peft_type": "ADALORA"}, "peft_type ADALORA"),
    ({"peft_type": None}, "peft_type None"),
    ({"use_tomorrows_lora": True}, "the configuration field 'use_tomorrows_lora'"),
]


@pytest.mark.parametrize(("fields", "feature"), FEATURES, ids=str)
def test_what_changes_the_maths_is_refused_by_name(
    save: Save, base: BaseManifest, fields: dict[str, Any], feature: str
) -> None:
    with pytest.raises(UnsupportedFeature, match=feature) as caught:
        convert_adapter(save(lora(), **fields), base)
    assert "adapter_config.json" in caught.value.path
    assert caught.value.remedy


def test_fields_that_are_off_or_unknown_and_empty_are_no_matter(save: Save, base: BaseManifest) -> None:
    off = {
        "use_dora": False,
        "modules_to_save": [],
        "loftq_config": {},
        "arrow_config": None,
        "use_tomorrows_lora": False,
    }
    irrelevant = {"lora_dropout": 0.1, "inference_mode": True, "revision": "main", "corda_config": {"x": 1}}
    patterns = {"target_modules": "((((a+)+)+)+)+$", "exclude_modules": "(a|a)*b", "layers_pattern": "["}
    expected = convert_adapter(save(lora()), base).report["digest"]
    assert convert_adapter(save(lora(), **off, **irrelevant, **patterns), base).report["digest"] == expected


def test_odd_but_harmless_fields_are_warnings(save: Save, base: BaseManifest) -> None:
    report = convert_adapter(save(lora(), task_type="SEQ_CLS", fan_in_fan_out=True), base).report
    assert [warning.split()[0] for warning in report["warnings"]] == ["task_type", "fan_in_fan_out"]


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"r": 0}, "r: .*greater than or equal to 1"),
    ({"r": -4}, "r: .*greater than or equal to 1"),
    ({"r": 65536}, "r: .*less than or equal to 256"),
    ({"r": True}, "r: .*valid integer"),
    ({"r": 4.0}, "r: .*valid integer"),
    ({"r": "4"}, "r: .*valid integer"),
    ({"r": None}, "r: Field required"),
    ({"lora_alpha": 1e38}, "lora_alpha: .*less than or equal to 1000000"),
    ({"lora_alpha": -(10**400)}, "lora_alpha: "),
    ({"lora_alpha": True}, "lora_alpha: .*valid number"),
    ({"lora_alpha": None}, "lora_alpha: Field required"),
    ({"use_rslora": 1}, "use_rslora: .*valid boolean"),
    ({"rank_pattern": {"q_proj": 257}}, r"rank_pattern\.q_proj: .*less than or equal to 256"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern: .*valid dictionary"),
    ({"rank_pattern": {str(i): 1 for i in range(4097)}}, "rank_pattern: .*at most 4096"),
    ({"rank_pattern": {"a" * 257: 1}}, "rank_pattern.*at most 256 characters"),
    ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\.q_proj: .*valid number"),
    ({"base_model_name_or_path": 3}, "base_model_name_or_path: .*valid string"),
    ({"trainable_token_indices": 7}, "trainable_token_indices"),
    ({"trainable_token_indices": ["7"]}, "trainable_token_indices"),
    ({"use_dora": "yes"}, "use_dora: .*valid boolean"),
    ({"alora_invocation_tokens": []}, "alora_invocation_tokens: .*at least 1"),
    ({"alora_invocation_tokens": "x"}, "alora_invocation_tokens: .*valid list"),
    ({"alora_invocation_tokens": [1.5]}, "alora_invocation_tokens.0: .*valid integer"),
    ({"alora_invocation_tokens": [1] * 1025}, "alora_invocation_tokens: .*at most 1024"),
    ({"alora_invocation_tokens": [1, 50]}, "alora_invocation_tokens: 50 is outside the vocabulary, 0..49"),
    ({"alora_invocation_tokens": [-1]}, "alora_invocation_tokens: -1 is outside the vocabulary"),
]


@pytest.mark.parametrize(("fields", "problem"), FIELDS, ids=lambda value: str(value)[:60])
def test_values_of_the_wrong_type_or_size(save: Save, base: BaseManifest, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadCheckpoint, match=rf"adapter_config\.json: {problem}"):
        convert_adapter(save(lora(), **fields), base)


@pytest.mark.parametrize("pattern", ["(?!q)q_proj", r"(q)\1", "(", "((a{99}){99}){99}", "*", r"(?<=x)y"])
def test_patterns_that_cannot_be_matched_safely(save: Save, base: BaseManifest, pattern: str) -> None:
    with pytest.raises(UnsupportedFeature, match="in alpha_pattern"):
        convert_adapter(save(lora(), alpha_pattern={pattern: 4}), base)


def test_a_pattern_that_would_never_end(save: Save, base: BaseManifest) -> None:
    pattern = {r"(([a-z_.0-9]+)+)+!": 4}
    assert convert_adapter(save(lora(), alpha_pattern=pattern), base).report["modules"]


CONFIG_TEXTS = [
    (b"", "is not JSON"),
    (b"[]", "must hold a JSON object"),
    (b"[" * 100_000, "nested too deep"),
    (b'{"a":' * 100_000, "nested too deep"),
    (b'{"r": 4, "r": 8}', "'r' occurs more than once"),
    (b'{"lora_alpha": NaN}', "NaN is not a finite number"),
    (b'{"lora_alpha": 1e999}', "not a finite number"),
    (b"\xff\xfe", "is not JSON"),
    (b" " * (1 << 20) + b"{}", "more than the limit of 1,048,576"),
]


@pytest.mark.parametrize(("text", "problem"), CONFIG_TEXTS, ids=lambda value: str(value)[:20])
def test_a_configuration_that_is_no_sound_json(save: Save, base: BaseManifest, text: bytes, problem: str) -> None:
    folder = save(lora())
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(BadCheckpoint, match=rf"adapter_config\.json: .*{problem}"):
        convert_adapter(folder, base)


def without(key: str) -> Callable[[dict[str, Array]], None]:
    return lambda tensors: tensors.pop(key).fill(0)


def put(key: str, *shape: int) -> Callable[[dict[str, Array]], None]:
    return lambda tensors: tensors.update({key: np.ones(shape, np.float32)})


def poison(key: str, value: float) -> Callable[[dict[str, Array]], None]:
    return lambda tensors: tensors[key].__setitem__((1, 2), value)


TENSORS: list[tuple[Callable[[dict[str, Array]], None], str]] = [
    (without(f"{Q0}.lora_B.weight"), "q_proj.lora_A.weight: its lora_B is missing"),
    (without(f"{Q0}.lora_A.weight"), "q_proj.lora_B.weight: its lora_A is missing"),
    (put(f"{Q0}.lora_A.weight", 0), "ZeRO-3 or FSDP saved a shard"),
    (put(f"{Q0}.lora_A.weight", 128), "ZeRO-3 or FSDP saved a shard"),
    (put(f"{Q0}.lora_B.weight", 24, 0), "ZeRO-3 or FSDP saved a shard"),
    (put(f"{Q0}.lora_A.weight", 4, 32, 1), "has 3 dimensions"),
    (put(f"{Q0}.lora_A.weight", 8, 32), "has rank 8 where adapter_config.json says 4"),
    (put(f"{Q0}.lora_B.weight", 24, 8), "has rank 8 where adapter_config.json says 4"),
    (put(f"{Q0}.lora_A.weight", 4, 64), "is for 64 input features, this base has 32"),
    (put(f"{Q0}.lora_B.weight", 576, 4), "is for 576 output features, this base has 24"),
    (
        put(linear("q_proj", 3) + ".lora_A.weight", 4, 32),
        "layers.3.self_attn.q_proj.lora_A.weight: the base has no such",
    ),
    (put(Q0.replace("self_attn", "mlp") + ".lora_A.weight", 4, 32), "the base has no such module"),
    (put(Q0.replace(".0.", ".00.") + ".lora_A.weight", 4, 32), "the base has no such module"),
    (put(f"{Q0}.lora_A.default.weight", 4, 32), "a full copy of a module's weight"),
    (put(f"x{Q0}.lora_A.weight", 4, 32), "the base has no such module"),
    (put("base_model.model.model.embed_tokens.lora_A.weight", 4, 50), "the base has no such module"),
    (put("base_model.model.model.embed_tokens.base_layer.weight", 51, 32), "the vocabulary was resized"),
    (put(f"{Q0}.lora_magnitude_vector", 24), "DoRA's magnitude"),
    (put(f"{Q0}.lora_diag", 4), "KaSA's diagonal"),
    (put(f"{Q0}.lora_B.bias", 24), "a bias on lora_B"),
    (put(f"{Q0}.bias", 24), "a trained bias"),
    (put(f"{Q0}.base_layer.weight", 24, 32), "a full copy of a module's weight"),
    (put("base_model.model.lm_head.weight", 50, 32), "a full copy of a module's weight"),
    (put("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", 1, 32), "trained token rows"),
    (poison(f"{Q0}.lora_A.weight", float("nan")), "q_proj.lora_A.weight: holds NaN or an infinity"),
    (poison(f"{Q0}.lora_B.weight", float("inf")), "q_proj.lora_B.weight: holds NaN or an infinity"),
    (poison(f"{Q0}.lora_B.weight", 3e38), "q_proj.lora_B.weight: holds NaN or an infinity, or too large a value"),
]


@pytest.mark.parametrize(("spoil", "problem"), TENSORS, ids=lambda value: value if isinstance(value, str) else "")
def test_tensors_that_are_not_what_they_should_be(
    save: Save, base: BaseManifest, spoil: Callable[[dict[str, Array]], None], problem: str
) -> None:
    tensors = lora()
    spoil(tensors)
    with pytest.raises(OpenLoraError) as caught:
        convert_adapter(save(tensors), base)
    assert problem in str(caught.value)
    assert "adapter_model.safetensors" in str(caught.value)


def test_every_problem_is_listed_at_once(save: Save, base: BaseManifest) -> None:
    tensors = lora(rank=8)
    with pytest.raises(BadCheckpoint) as caught:
        convert_adapter(save(tensors), base)
    assert len(caught.value.problems) == 12
    with pytest.raises(BadCheckpoint, match="and 4 more"):
        convert_adapter(save(lora(("q_proj", "v_proj", "o_proj", "down_proj"), 8)), base)


def test_a_checkpoint_without_any_factor(save: Save, base: BaseManifest) -> None:
    copy = {"base_model.model.lm_head.base_layer.weight": np.zeros((50, 32), np.float32)}
    with pytest.raises(BadCheckpoint, match="none of its 1 tensors is a LoRA factor"):
        convert_adapter(save(copy), base)


def header(entries: object, data: int = 0) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * data


def entry(shape: list[int], end: int, dtype: str = "F32", start: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FILES = [
    (b"", "has 0 bytes"),
    (struct.pack("<Q", 100 << 20), "more than the limit of 4,194,304"),
    (struct.pack("<Q", 1 << 62), "more than the limit"),
    (header({"x": entry([1 << 40], 1 << 42)}), "cut short"),
    (header({"x": entry([4], 16, "I64")}, 16), "dtype I64"),
    (header({"x": entry([2, 2, 2, 2], 64)}, 64), "4 dimensions"),
    (header({"x": entry([4], 16), "y": entry([4], 16)}, 16), "starts at byte"),
    (header({"x" * 300: entry([4], 16)}, 16), "more than the limit of 256 bytes"),
    (header({f"x{i}": entry([0], 0) for i in range(20_001)}), "more than the limit of 20,000"),
]


@pytest.mark.parametrize(("content", "problem"), FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_files_that_are_no_sound_safetensors(save: Save, base: BaseManifest, content: bytes, problem: str) -> None:
    folder = save(lora())
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=rf"adapter_model\.safetensors: .*{problem}"):
        convert_adapter(folder, base)


FILE_NAMES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("name", FILE_NAMES)
def test_only_regular_files_are_opened(save: Save, base: BaseManifest, tmp_path: Path, name: str) -> None:
    folder = save(lora())
    secret = tmp_path / name
    (folder / name).rename(secret)
    with pytest.raises(BadCheckpoint, match=rf"{name}: cannot be opened"):
        convert_adapter(folder, base)
    (folder / name).symlink_to(secret)
    with pytest.raises(BadCheckpoint, match="symbolic link out of its folder"):
        convert_adapter(folder, base)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        convert_adapter(folder, base)


def test_a_hard_link_is_read_like_the_file_that_it_is_and_never_written(
    save: Save, base: BaseManifest, tmp_path: Path
) -> None:
    folder = save(lora())
    expected = convert_adapter(folder, base).report["digest"]
    contents = [(folder / name).read_bytes() for name in FILE_NAMES]
    for name in FILE_NAMES:
        (folder / name).rename(tmp_path / name)
        (folder / name).hardlink_to(tmp_path / name)
    assert convert_adapter(folder, base).report["digest"] == expected
    assert [(tmp_path / name).read_bytes() for name in FILE_NAMES] == contents


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_hard_link_to_what_is_no_adapter_tells_nothing_of_it(
    save: Save, base: BaseManifest, tmp_path: Path, name: str
) -> None:
    folder = save(lora())
    (tmp_path / "secret").write_text("hunter2 " * 100)
    (folder / name).unlink()
    (folder / name).hardlink_to(tmp_path / "secret")
    with pytest.raises(BadCheckpoint) as caught:
        convert_adapter(folder, base)
    assert "hunter2" not in str(caught.value)


def test_names_that_differ_in_case_alone_are_other_files(save: Save, base: BaseManifest) -> None:
    folder = save(lora())
    expected = convert_adapter(folder, base).report["digest"]
    for name in FILE_NAMES:
        if not (folder / name.upper()).exists():  # as it does where file names have no case
            (folder / name.upper()).write_text("rubbish")
    assert convert_adapter(folder, base).report["digest"] == expected


def test_a_source_that_is_no_directory(tmp_path: Path, base: BaseManifest) -> None:
    with pytest.raises(BadCheckpoint, match="is not a directory"):
        convert_adapter(tmp_path / "absent", base)
