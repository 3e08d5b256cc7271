import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.base import convert_base
from convert.base.hf_config import read_hf_config
from openlora_jax.errors import BadCheckpoint, CannotInstall, OpenLoraError, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest, read_weights
from openlora_jax.model.weights import weight_table
from tests.convert.base.checkpoints import CONFIG, Arrays, hf_tensors, write_gguf, write_hf

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied": {"tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32},
    "qwen2_tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "attention_bias": False},
}


def ignore(stage: str, done: int, total: int) -> None:
    """No progress bar."""


def model(folder: Path, changes: dict[str, Any] | None = None, seed: int = 0) -> tuple[Path, Arrays]:
    fields = {**CONFIG, **(changes or {})}
    write_hf(folder, fields, None)
    tensors = hf_tensors(read_hf_config(folder), seed)
    return write_hf(folder, fields, tensors), tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_its_sources_joined(tmp_path: Path, family: str) -> None:
    source, tensors = model(tmp_path / "hf", FAMILIES[family])
    report = convert_base(source, tmp_path / "base", "float32", ignore)
    manifest = BaseManifest.read(tmp_path / "base")
    assert report.manifest == manifest
    assert manifest.config == read_hf_config(source)
    table = weight_table(manifest.config)
    values = read_weights(tmp_path / "base", manifest.config, "float32")
    assert values.keys() == table.keys()
    for name, weight in table.items():
        joined = np.concatenate([tensors[part] for part, _ in weight.sources])
        np.testing.assert_array_equal(values[name], joined, err_msg=name)
    used = [part for weight in table.values() for part, _ in weight.sources]
    assert sorted(used) == sorted(tensors)
    assert report.parameters == sum(tensor.size for tensor in tensors.values())


def test_bfloat16_rounds_to_nearest(tmp_path: Path) -> None:
    source, tensors = model(tmp_path / "hf")
    report = convert_base(source, tmp_path / "base", "bfloat16", ignore)
    values = read_weights(tmp_path / "base", report.manifest.config, "bfloat16")
    expected = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(values["embed.weight"], expected)
    assert report.bytes == 2 * report.parameters


def test_shards_make_the_same_base_as_one_file(tmp_path: Path) -> None:
    source, tensors = model(tmp_path / "one")
    sharded = write_hf(tmp_path / "many", CONFIG, tensors, shards=3)
    one, many = (
        convert_base(folder, tmp_path / f"{folder.name}.base", "float32", ignore) for folder in (source, sharded)
    )
    assert one.manifest.digest == many.manifest.digest


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    source, tensors = model(tmp_path / "hf")
    digests = [convert_base(source, tmp_path / "a", "float32", ignore).manifest.digest]
    tensors["lm_head.weight"][3, 5] += 1e-3
    write_hf(source, CONFIG, tensors)
    digests.append(convert_base(source, tmp_path / "b", "float32", ignore).manifest.digest)
    write_hf(source, {**CONFIG, "rope_theta": 5e5}, tensors)
    digests.append(convert_base(source, tmp_path / "c", "float32", ignore).manifest.digest)
    assert len(set(digests)) == 3


def test_gguf_makes_the_same_base_as_hugging_face(tmp_path: Path) -> None:
    source, tensors = model(tmp_path / "hf", {"vocab_size": 320, "bos_token_id": 259, "eos_token_id": 260})
    file = write_gguf(tmp_path / "model.gguf", read_hf_config(source), tensors)
    from_hf = convert_base(source, tmp_path / "a", "float32", ignore)
    from_gguf = convert_base(file, tmp_path / "b", "float32", ignore)
    assert from_gguf.manifest.config == from_hf.manifest.config
    assert from_gguf.manifest.digest == from_hf.manifest.digest


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    heard: list[tuple[str, int, int]] = []
    report = convert_base(source, tmp_path / "base", "float32", lambda *event: heard.append(event))
    assert [stage for stage, done, total in heard if done == total] == ["weights"]
    assert all(total == report.bytes for _, _, total in heard)


def test_a_hugging_face_cache_full_of_links_is_read(tmp_path: Path) -> None:
    real, _ = model(tmp_path / "models--a--b" / "blobs")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    report = convert_base(snapshot, tmp_path / "base", "float32", ignore)
    assert report.manifest.source == "b"


def install_fails(source: Path, destination: Path, error: type[OpenLoraError], *words: str) -> None:
    before = sorted(destination.parent.iterdir())
    with pytest.raises(error) as caught:
        convert_base(source, destination, "float32", ignore)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert sorted(destination.parent.iterdir()) == before


def test_a_destination_in_use_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    destination = tmp_path / "base"
    destination.mkdir()
    convert_base(source, destination, "float32", ignore)
    install_fails(source, destination, CannotInstall, "base", "not an empty directory")


def test_an_unwritable_destination_is_named(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotInstall, match="file/base: "):
        convert_base(source, tmp_path / "file" / "base", "float32", ignore)


def test_a_full_disk_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = model(tmp_path / "hf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    install_fails(source, tmp_path / "base", CannotInstall, "1,000 free")


def drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def link(name: str, target: str) -> Any:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def cut(name: str, size: int) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def no_decoder(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": None}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD_FOLDERS: dict[str, tuple[Any, type[OpenLoraError], tuple[str, ...]]] = {
    "no config": (drop("config.json"), BadCheckpoint, ("config.json", "No such file")),
    "config cut short": (cut("config.json", 50), BadCheckpoint, ("config.json", "JSON")),
    "config of a list": (write("config.json", "[]"), BadCheckpoint, ("config.json", "object")),
    "config bomb": (write("config.json", "[" * 500_000), BadCheckpoint, ("config.json", "deep")),
    "config too large": (write("config.json", " " * (2 << 20)), BadCheckpoint, ("config.json", "1,048,576")),
    "key twice": (write("config.json", '{"vocab_size": 1, "vocab_size": 2}'), BadCheckpoint, ("vocab_size", "once")),
    "no weights": (drop("model.safetensors"), BadCheckpoint, ("model.safetensors",)),
    "pickle": (pickled, UnsupportedFeature, ("pytorch_model.bin", "safetensors")),
    "weights cut short": (cut("model.safetensors", 5000), BadCheckpoint, ("model.safetensors", "cut short")),
    "weights link out": (link("model.safetensors", "/dev/zero"), BadCheckpoint, ("model.safetensors", "link")),
    "weights a pipe": (pipe, BadCheckpoint, ("model.safetensors", "not a regular file")),
    "dangling link": (link("config.json", "gone.json"), BadCheckpoint, ("config.json", "No such file")),
    "no tokenizer": (drop("tokenizer.json"), BadCheckpoint, ("tokenizer.json",)),
    "bad tokenizer": (write("tokenizer.json", '{"model": 3}'), BadCheckpoint, ("tokenizer.json", "no tokenizer")),
    "no decoder": (no_decoder, BadCheckpoint, ("tokenizer.json", "decoder None")),
    "adapter": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        BadCheckpoint,
        ("adapter",),
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_install_nothing(tmp_path: Path, case: str) -> None:
    change, error, words = BAD_FOLDERS[case]
    source, _ = model(tmp_path / "hf")
    change(source)
    install_fails(source, tmp_path / "base", error, *words)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    install_fails(tmp_path / "gone", tmp_path / "base", BadCheckpoint, "gone", "does not exist")


def test_a_slow_tokenizer_says_how_to_convert_it(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    install_fails(source, tmp_path / "base", UnsupportedFeature, "tokenizer.model", "save_pretrained")


def test_the_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf", {"vocab_size": 200})
    install_fails(source, tmp_path / "base", BadCheckpoint, "tokenizer.json", "256", "200")


BAD_INDEXES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "missing shard": (drop("model-00002-of-00002.safetensors"), ("model-00002-of-00002.safetensors", "No such file")),
    "no map": (write("model.safetensors.index.json", "{}"), ("index.json", "weight_map")),
    "path out": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}'),
        ("../a.safetensors", "in this folder"),
    ),
    "tensor elsewhere": (
        write(
            "model.safetensors.index.json",
            json.dumps(
                {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}
            ),
        ),
        ("'x'", "'y'", "not in model-00001-of-00002.safetensors"),
    ),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_shards_install_nothing(tmp_path: Path, case: str) -> None:
    change, words = BAD_INDEXES[case]
    _, tensors = model(tmp_path / "one")
    source = write_hf(tmp_path / "hf", CONFIG, tensors, shards=2)
    change(source)
    install_fails(source, tmp_path / "base", BadCheckpoint, *words)


def test_chat_template_and_special_tokens_go_along(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "auto_map": {"AutoTokenizer": ["evil.py", None]},
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ yes }}"}],
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    convert_base(source, tmp_path / "base", "float32", ignore)
    assert (tmp_path / "base" / "chat_template.jinja").read_text() == "{{ yes }}"
    written = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    assert written == {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
