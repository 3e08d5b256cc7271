from pathlib import Path

import jax
import pytest

from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig
from openlora_jax.memory import MemoryPlan
from tests.openlora_jax.cli.conftest import RunCli
from tests.openlora_jax.tiny import MODEL, SETTINGS


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
    assert "77 KV blocks" in openlora("doctor", "--config", tmp_path / "server.yaml").out


def test_a_backend_that_cannot_run_here(openlora: RunCli) -> None:
    ended = openlora("doctor", "--backend", "cuda")
    assert ended.status == 2
    assert "backend 'cuda'" in ended.err
    assert jax.__version__ in ended.out, "what can be said is said first"


def test_a_machine_without_the_device_asked_for(openlora: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(jax, "default_backend", refuse)
    ended = openlora("doctor")
    assert ended.status == 2
    assert "JAX finds no device of JAX_PLATFORMS=" in ended.err


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_memory_plan(dtype: str, itemsize: int) -> None:
    """Worked out by hand from the tiny model: 2 layers of width 32, 2 KV heads of 8, MLP 48, 300 tokens, head tied."""
    settings = {**SETTINGS, "pool_pages": 3, "wide_pool_pages": 2, "dtype": dtype}
    plan = MemoryPlan.of(EngineConfig.of(settings), MODEL)
    layer = 32 + (32 + 16 + 16) * 32 + 32 * 32 + 32 + 2 * 48 * 32 + 32 * 48
    assert plan.weights == itemsize * (300 * 32 + 2 * layer + 32)
    assert plan.kv == itemsize * 65 * 16 * 2 * 2 * 16
    assert plan.pools["q_proj"] == itemsize * 3 * 2 * 16 * (32 + 32)
    assert plan.pools["k_proj"] == itemsize * 3 * 2 * 16 * (32 + 16)
    assert plan.pools["lm_head"] == itemsize * 2 * 16 * (32 + 300)
    assert plan.sampler == 5 * 300 * 9
    assert plan.total == plan.weights + plan.kv + sum(plan.pools.values()) + plan.sampler
    plan.check(plan.total)
    assert str(plan).startswith(f"{plan.total / 1e6:,.0f} MB (")
    with pytest.raises(InvalidConfig, match="lower kv_blocks or pool_pages"):
        plan.check(plan.total - 1)
