"""`openlora convert merge` and `export`, from the command to the files; refusals are one line and status 2."""

import json
from pathlib import Path

import pytest

from convert.adapter import convert_adapter
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.weights import random_weights
from tests.convert.adapter.conftest import CONFIG
from tests.convert.merge.conftest import BASE, install, random_lora
from tests.openlora_jax.cli.conftest import RunCli


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = AdapterStore.create(tmp_path / "store")
    for seed, name in enumerate(("one", "two")):
        install(store, tmp_path, name, random_lora(seed))
    install(store, tmp_path, "wide", random_lora(2, rank=20), r=20)
    return store.path


def test_a_merged_adapter_is_installed_and_reported(openlora: RunCli, store: Path) -> None:
    command = ["convert", "merge", "--store", store, "--name", "new", "--method", "dare_ties", "--density", 0.5]
    ended = openlora(*command, "--seed", 3, "one=0.6", "two=-0.4")
    assert (ended.status, ended.err) == (0, "")
    report = json.loads(ended.out)
    opened = AdapterStore(store)
    recipe = opened.manifest(opened.resolve("new")).recipe
    assert recipe is not None
    assert (report["digest"], report["recipe"]) == (opened.resolve("new"), recipe.model_dump(exclude_none=True))
    assert report["members"] == {"one": 0.6, "two": -0.4}
    assert report["warnings"] == []
    inspected = openlora("adapters", "inspect", "new", "--store", store).out
    assert '"method": "dare_ties"' in inspected
    assert json.loads(openlora("adapters", "inspect", "new", "--store", store, "--json").out)["recipe"]["seed"] == 3


def test_a_taken_name_is_found_before_the_work(openlora: RunCli, store: Path) -> None:
    command = ["convert", "merge", "--store", store, "--name", "new", "--method", "svd", "one=1", "wide=1"]
    first = json.loads(openlora(*command).out)["digest"]
    assert json.loads(openlora(*command).out)["digest"] == first
    refused = openlora(*command, "--rank", 3)
    assert refused.status == 2
    assert "adapter 'new' is already registered" in refused.err
    assert json.loads(openlora(*command, "--rank", 3, "--replace").out)["digest"] != first


def test_a_single_member_is_merged_by_linear_with_a_warning(openlora: RunCli, store: Path) -> None:
    report = json.loads(openlora("convert", "merge", "--store", store, "--name", "n", "--method", "cat", "one=2").out)
    assert report["recipe"]["method"] == "linear"
    assert report["warnings"] == ["a single adapter is merged by linear, whatever the method"]


def test_a_merged_base_is_made_and_reported(openlora: RunCli, store: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write_weights(base, random_weights(CONFIG, 0))
    BASE.write(base)
    ended = openlora("convert", "merge", "--store", store, "--base", base, "--into-base", tmp_path / "new", "one=0.5")
    assert (ended.status, ended.err) == (0, "")
    assert json.loads(ended.out)["digest"] == BaseManifest.read(tmp_path / "new").digest != BASE.digest


def test_an_adapter_is_exported(openlora: RunCli, store: Path, tmp_path: Path) -> None:
    ended = openlora("convert", "export", "one", "--store", store, "--out", tmp_path / "out")
    assert (ended.status, ended.err) == (0, "")
    assert json.loads(ended.out)["digest"] == AdapterStore(store).resolve("one")
    assert convert_adapter(tmp_path / "out", BASE).report["tensors"]["total"] == json.loads(ended.out)["tensors"]


REFUSED = [
    (["--name", "n", "--method", "svd", "one"], "members: 'one' is no NAME=WEIGHT; write legal=0.6 tone=0.4"),
    (["--name", "n", "--method", "svd", " =0.5"], "' =0.5' is no NAME=WEIGHT"),
    (["--name", "n", "--method", "svd", "one=x"], "'one=x' is no NAME=WEIGHT"),
    (["--name", "n", "--method", "svd", "one=nan"], "the weight of 'one' is nan"),
    (["--name", "n", "--method", "svd", "one=1", "one=2"], "'one' is named twice"),
    (["--name", "n", "--method", "svd", "nobody=1"], "unknown adapter 'nobody'"),
    (["--name", "n", "--method", "average", "one=1"], "'average' is not one of"),
    (["--name", "n", "one=1"], "--method: name one, such as ties"),
    (["--name", "../n", "--method", "svd", "one=1"], "name: '../n' must be"),
    (["--name", "n", "--method", "linear", "one=1", "wide=1"], "linear needs equal ranks"),
    (["--name", "n", "--method", "ties", "--density", "1.5", "one=1", "two=1"], "--density: 1.5 must be above 0"),
    (["--name", "n", "--method", "svd"], "Missing argument"),
    (["--method", "svd", "one=1"], "--name: give --name for a merged adapter, or --into-base"),
    (["--name", "n", "--into-base", "x", "--method", "svd", "one=1"], "--name: give --name"),
    (["--into-base", "x", "one=1"], "--base: --into-base needs the converted base"),
    (["--into-base", "x", "--method", "cat", "one=1"], "--method: has no part in --into-base"),
    (["--into-base", "x", "--dtype", "bfloat16", "one=1"], "--dtype: has no part in --into-base"),
    (["--into-base", "x", "--replace", "one=1"], "--replace: has no part in --into-base"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_a_refusal_is_one_line(openlora: RunCli, store: Path, options: list[str], reason: str) -> None:
    before = AdapterStore(store).registrations().keys()
    ended = openlora("convert", "merge", "--store", store, *options)
    assert ended.status == 2
    assert reason in ended.err
    assert ended.err.count("\n") == 1
    assert AdapterStore(store).registrations().keys() == before


def test_adapters_of_another_base_are_refused(openlora: RunCli, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    BaseManifest(config=CONFIG, dtype="float32", digest="d" * 64, source="other").write(other)
    for rest in (["--name", "n", "--method", "svd"], ["--into-base", tmp_path / "new"]):
        ended = openlora("convert", "merge", "--store", store, "--base", other, *rest, "one=1", "two=1")
        assert ended.status == 2
        assert "'one' was converted for base bbbbbbbbbbbb, and this one is dddddddddddd" in ended.err
