"""`openlora convert adapter` and `openlora adapters`, from a PEFT directory to a registered adapter and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.cli import adapters, convert
from openlora_jax.errors import AdapterExists, BadCheckpoint, InvalidRequest, UnknownAdapter
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import CONFIG, lora, write_checkpoint

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Converts a checkpoint as `x` with further options; what it raises comes out."""
    base = BaseManifest(config=CONFIG, dtype="float32", digest="b" * 64, source="tiny")
    (tmp_path / "base").mkdir()
    base.write(tmp_path / "base")
    write_checkpoint(tmp_path / "adapter", lora())

    def invoke(*options: str, name: str = "x") -> Result:
        fixed = ["--store", str(tmp_path / "store"), "--name", name, "--base", str(tmp_path / "base")]
        return CliRunner().invoke(
            convert.app, ["adapter", str(tmp_path / "adapter"), *fixed, *options], catch_exceptions=False
        )

    return invoke


def store_command(tmp_path: Path, *arguments: str) -> str:
    result = CliRunner().invoke(
        adapters.app, [*arguments, "--store", str(tmp_path / "store")], catch_exceptions=False, env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_convert_list_inspect_verify_remove(run: Run, tmp_path: Path) -> None:
    report = json.loads(run("--dtype", "bfloat16").stdout)
    assert report["name"] == "x"
    assert report["installed"] is True
    assert AdapterStore(tmp_path / "store").resolve("x") == report["digest"]
    assert report["digest"][:12] in store_command(tmp_path, "list")
    (row,) = json.loads(store_command(tmp_path, "list", "--json"))
    assert row["modules"] == {"q_proj": {"rank": 4, "pages": 1}, "v_proj": {"rank": 4, "pages": 1}}
    assert row["dtype"] == "bfloat16"
    assert "q_proj" in store_command(tmp_path, "inspect", "x")
    assert json.loads(store_command(tmp_path, "inspect", "x", "--json"))["base_digest"] == "b" * 64
    assert store_command(tmp_path, "verify") == "1 adapters verified\n"
    store_command(tmp_path, "remove", "x")
    assert json.loads(store_command(tmp_path, "list", "--json")) == []
    with pytest.raises(UnknownAdapter):
        store_command(tmp_path, "inspect", "x")


def test_a_dry_run_installs_nothing(run: Run, tmp_path: Path) -> None:
    report = json.loads(run("--dry-run").stdout)
    assert report["installed"] is False
    assert not (tmp_path / "store").exists()
    run()
    with pytest.raises(AdapterExists):
        run("--dry-run", "--dtype", "bfloat16")
    assert json.loads(run("--dry-run", "--replace", "--dtype", "bfloat16").stdout)["digest"] != report["digest"]


def test_a_taken_name_is_replaced_only_when_told(run: Run, tmp_path: Path) -> None:
    first = json.loads(run().stdout)["digest"]
    assert json.loads(run().stdout)["digest"] == first
    with pytest.raises(AdapterExists, match="--replace"):
        run("--dtype", "bfloat16")
    second = json.loads(run("--dtype", "bfloat16", "--replace").stdout)["digest"]
    assert AdapterStore(tmp_path / "store").resolve("x") == second != first


def test_a_bad_adapter_or_name_installs_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        run(name="../x")
    write_checkpoint(tmp_path / "adapter", lora(rank=5))
    with pytest.raises(BadCheckpoint, match="has rank 5"):
        run()
    assert not (tmp_path / "store").exists()


def test_strict_base(run: Run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "adapter", lora(), base_model_name_or_path="other")
    assert "other" in json.loads(run().stdout)["warnings"][0]
    with pytest.raises(BadCheckpoint, match="'other'"):
        run("--strict-base")


def test_an_adapter_of_another_base_is_refused(run: Run, tmp_path: Path) -> None:
    wider = replace(CONFIG, hidden_size=64)
    BaseManifest(config=wider, dtype="float32", digest="c" * 64, source="tiny").write(tmp_path / "base")
    with pytest.raises(BadCheckpoint, match="is for 32 input features, this base has 64"):
        run()


def test_damage_is_listed_and_fails_the_verification(run: Run, tmp_path: Path) -> None:
    digest = json.loads(run().stdout)["digest"]
    (tmp_path / "store" / "artifacts" / digest / "manifest.json").unlink()
    assert "damaged" in store_command(tmp_path, "list")
    with pytest.raises(BadCheckpoint, match=r"1 of 1 adapters are damaged; .*manifest\.json"):
        store_command(tmp_path, "verify")
