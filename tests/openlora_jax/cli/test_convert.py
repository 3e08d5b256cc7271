"""`openlora convert`: what is installed, what is reported, and what is refused before anything is installed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from convert.adapter.directory import CONFIG as CONFIG_FILE
from convert.adapter.directory import WEIGHTS
from convert.base.hf_config import read_hf_config
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.cli import convert
from openlora_jax.errors import AdapterExists, BadCheckpoint, InvalidRequest
from openlora_jax.model.checkpoint import BaseManifest
from tests.convert.adapter.conftest import CONFIG, lora, write_checkpoint
from tests.convert.base.checkpoints import CONFIG as HF_CONFIG
from tests.convert.base.checkpoints import hf_tensors, write_hf
from tests.openlora_jax.cli.conftest import RunCli

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


def test_an_adapter_is_installed_and_reported(run: Run, tmp_path: Path) -> None:
    report = json.loads(run("--dtype", "bfloat16").stdout)
    assert report["name"] == "x"
    assert report["installed"] is True
    assert report["tensors"]["consumed"] == 12
    store = AdapterStore(tmp_path / "store")
    assert store.resolve("x") == report["digest"]
    assert store.manifest(report["digest"]).dtype == "bfloat16"


def test_an_adapter_in_few_bits(run: Run, tmp_path: Path, openlora: RunCli) -> None:
    report = json.loads(run("--quant", "int4").stdout)
    module = report["modules"]["q_proj"]
    assert module["few_bits"]["A"].startswith("int4, error 0.0")
    assert 0 < module["delta_error"] < 0.1
    store = AdapterStore(tmp_path / "store")
    manifest = store.manifest(store.resolve("x"))
    assert (manifest.dtype, set(manifest.few_bits)) == ("bfloat16", {"q_proj.A", "v_proj.A"})  # B is 24 and 12 wide
    assert report["warnings"] == [
        "q_proj.B stays in bfloat16: 24 columns are not a multiple of the 32 that int4 packs together",
        "v_proj.B stays in bfloat16: 12 columns are not a multiple of the 32 that int4 packs together",
    ]
    assert "A int4" in openlora("adapters", "inspect", "x", "--store", store.path).out
    auto = json.loads(run("--quant", "auto", "--max-error", "0.01", "--dtype", "float32", name="y").stdout)
    assert auto["dtype"] == "float32"
    assert "few_bits" not in auto["modules"]["q_proj"]
    assert auto["warnings"][0] == "q_proj.A stays in float32: rounding would change more than 0.01 of it"


@pytest.mark.parametrize("options", [("--max-error", "0.1"), ("--quant", "auto", "--max-error", "nan")], ids=str)
def test_an_error_is_for_auto_and_finite(run: Run, options: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="is a finite number from 0 on, for --quant auto"):
        run(*options)


def test_a_base_model_is_converted_and_reported(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", HF_CONFIG, None)
    write_hf(source, HF_CONFIG, hf_tensors(read_hf_config(source), 0))
    result = CliRunner().invoke(convert.app, ["base", str(source), str(tmp_path / "base")], catch_exceptions=False)
    assert json.loads(result.stdout)["digest"] == BaseManifest.read(tmp_path / "base").digest


def test_a_base_model_is_quantised(openlora: RunCli, tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", HF_CONFIG, None)
    write_hf(source, HF_CONFIG, hf_tensors(read_hf_config(source), 0))
    made = openlora("convert", "base", source, tmp_path / "base", "--quant", "int8", "--group", "row")
    assert json.loads(made.out)["quantization"] == {"format": "int8", "group": None, "offsets": None}
    refused = openlora("convert", "base", source, tmp_path / "other", "--quant", "int4")
    assert refused.status == 2
    assert "48 columns are not a multiple of the 32 that int4 packs together is not supported; use int8" in refused.err


@pytest.mark.parametrize("option", [("--group", "64"), ("--symmetric",)], ids=str)
def test_options_of_a_quantised_base_alone(openlora: RunCli, tmp_path: Path, option: tuple[str, ...]) -> None:
    ended = openlora("convert", "base", tmp_path, tmp_path / "base", *option)
    assert ended.status == 2
    assert f"{option[0]}: is of a quantised model; give --quant as well" in ended.err


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


def test_a_bad_name_installs_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        run(name="../x")
    assert not (tmp_path / "store").exists()


def link_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


BAD: dict[str, Callable[[Path], object]] = {
    "has rank 5": lambda folder: write_checkpoint(folder, lora(rank=5)),
    "QALoRA": lambda folder: write_checkpoint(folder, lora(), use_qalora=True),
    "greater than or equal to 1": lambda folder: write_checkpoint(folder, lora(), r=0),
    "holds NaN": lambda folder: write_checkpoint(folder, {key: each * np.nan for key, each in lora().items()}),
    "is nested too deep": lambda folder: (folder / CONFIG_FILE).write_bytes(b"[" * 100_000),
    "has 0 bytes": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "symbolic link out of its folder": link_out,
}


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("problem", BAD)
def test_a_bad_adapter_is_one_line_and_status_2_and_installs_nothing(
    openlora: RunCli, tmp_path: Path, problem: str
) -> None:
    BAD[problem](tmp_path / "adapter")
    command = ("convert", "adapter", tmp_path / "adapter", "--base", tmp_path / "base")
    ended = openlora(*command, "--store", tmp_path / "store", "--name", "x")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert problem in ended.err
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
