import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from openlora_jax.model.checkpoint import BaseManifest
from tests.openlora_jax.cli.conftest import RunCli
from tests.openlora_jax.tiny import DIGEST, MODEL


def test_everything_is_named(openlora: RunCli, tiny_base: Path) -> None:
    out = openlora("doctor", "--base", tiny_base).out
    for name in (
        "python",
        "jaxlib",
        "cpu:0",
        "ops of backend cpu",
        "paged_attention",
        "xla",
        "lm_head",
        "in all",
        "memory of",
    ):
        assert name in out
    assert jax.__version__ in out


def test_a_servers_configuration_names_the_base(openlora: RunCli, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text(f"base: {tiny_base}\nlisten: 127.0.0.1:1\nkv_blocks: 77\n")
    out = openlora("doctor", "--config", tmp_path / "server.yaml").out
    assert re.search(r"KV blocks of 32 tokens\W+77 ", out)


def test_a_backend_that_cannot_run_here(openlora: RunCli) -> None:
    ended = openlora("doctor", "--backend", "cuda")
    assert ended.status == 2
    assert "backend 'cuda'" in ended.err
    assert jax.__version__ in ended.out, "what can be said is said first"


def test_a_base_that_the_backend_does_not_take(openlora: RunCli, tmp_path: Path) -> None:
    BaseManifest(config=replace(MODEL, head_dim=130), dtype="float32", digest=DIGEST, source="none").write(tmp_path)
    assert openlora("doctor", "--base", tmp_path).status == 0
    ended = openlora("doctor", "--base", tmp_path, "--backend", "interpret")
    assert ended.status == 2
    assert "paged_attention: heads are 130 wide" in ended.err
    assert "KV blocks" in ended.out, "what can be said is said first"


def test_a_machine_without_the_device_asked_for(openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(jax, "default_backend", refuse)
    ended = openlora("doctor")
    assert ended.status == 2
    assert "JAX finds no device of JAX_PLATFORMS=" in ended.err
