"""`openlora adapters`: list, inspect, verify, mix and remove what a store holds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from openlora_jax.adapters.few_bits import Rounding
from openlora_jax.adapters.manifest import Manifest, SavedModule
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.cli import adapters
from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnknownAdapter
from tests.convert.adapter.conftest import CONFIG

Command = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    opened = AdapterStore.create(tmp_path)
    install_synthetic(opened, CONFIG, "b" * 64, {"x": 1, "y": 2}, rank=20, dtype="bfloat16")
    return opened


@pytest.fixture
def command(store: AdapterStore) -> Command:
    def invoke(*arguments: str) -> str:
        given = [*arguments, "--store", str(store.path)]
        result = CliRunner().invoke(adapters.app, given, catch_exceptions=False, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_list(command: Command, store: AdapterStore) -> None:
    digest = store.resolve("y")
    assert digest[:12] in command("list")
    assert "q, v" in command("list")
    first, second = json.loads(command("list", "--json"))
    assert (first["name"], second["name"], second["digest"]) == ("x", "y", digest)
    assert second["modules"] == {"q_proj": {"rank": 20, "pages": 2}, "v_proj": {"rank": 20, "pages": 2}}
    assert second["bytes"] == store.manifest(digest).nbytes


def test_inspect(command: Command, store: AdapterStore) -> None:
    assert store.resolve("x") in command("inspect", "x")
    assert json.loads(command("inspect", "x", "--json"))["base_digest"] == "b" * 64
    with pytest.raises(UnknownAdapter, match="'z'"):
        command("inspect", "z")


def test_modules_of_its_own_are_shown_with_their_size(command: Command, store: AdapterStore) -> None:
    manifest = Manifest(
        base_digest="b" * 64, dtype="float32", modules={}, saved={"lm_head": SavedModule(rows=500, width=300)}
    )
    store.install("headed", manifest, {"lm_head.saved": np.ones((1, 1, 500, 300), np.float32)})
    assert "own lm_head" in command("list")
    assert json.loads(command("list", "--json"))[0]["saved"] == {"lm_head": 600_000}
    assert "saved  lm_head, 0.6 MB, in the place of the base's" in command("inspect", "headed")


def test_what_is_in_few_bits_is_said(command: Command, store: AdapterStore) -> None:
    wide, few_bits = replace(CONFIG, intermediate_size=64), Rounding("int4")
    install_synthetic(store, wide, "b" * 64, {"all": 1}, modules=("gate_proj",), few_bits=few_bits)
    install_synthetic(store, wide, "b" * 64, {"some": 2}, few_bits=few_bits)  # B is 24 and 12 wide
    listed = {row["name"]: row for row in json.loads(command("list", "--json"))}
    assert [listed[name]["stored"] for name in ("all", "some", "x")] == ["int4", "int4, bfloat16", "bfloat16"]
    assert listed["some"]["modules"]["v_proj"]["few_bits"].keys() == {"A"}
    assert listed["some"]["modules"]["v_proj"]["delta_error"] > 0
    assert command("list").count("int4, bfloat16") == 1
    assert "stored int4, bfloat16" in command("inspect", "some")


def test_remove(command: Command, store: AdapterStore) -> None:
    assert command("remove", "x") == "removed x\n"
    assert set(store.registrations()) == {"y"}
    with pytest.raises(UnknownAdapter, match="'x'"):
        command("remove", "x")


def test_mixes(command: Command, store: AdapterStore) -> None:
    assert command("mix", "both=x:0.6,y:-0.4") == "registered both\n"
    assert "0.6 x + -0.4 y" in command("list")
    listed = json.loads(command("list", "--json"))
    assert [row["name"] for row in listed] == ["both", "x", "y"]
    assert listed[0]["mix"] == {"x": 0.6, "y": -0.4}
    shown = json.loads(command("inspect", "both", "--json"))
    assert shown["mix"][1] == {"adapter": "y", "digest": store.resolve("y"), "weight": -0.4}
    assert store.resolve("y") in command("inspect", "both")
    with pytest.raises(InvalidRequest, match="'x' is a member of the mix 'both'"):
        command("remove", "x")
    command("mix", "both=x:1", "--replace")
    assert command("verify") == "2 adapters verified\n"
    assert command("remove", "both") == "removed both\n"


@pytest.mark.parametrize("mix", ["both", "both=", "both=x", "both=x:y", "both=:1", "both=x:1,x:2", "both=x:nan"])
def test_what_is_no_mix(command: Command, mix: str) -> None:
    with pytest.raises((InvalidRequest, UnknownAdapter)):
        command("mix", mix)
    assert len(json.loads(command("list", "--json"))) == 2


def test_damage_is_listed_and_fails_the_verification(command: Command, store: AdapterStore) -> None:
    assert command("verify") == "2 adapters verified\n"
    (store.folder(store.resolve("x")) / "manifest.json").unlink()
    assert "damaged" in command("list")
    with pytest.raises(BadCheckpoint, match=r"1 of 2 adapters are damaged; .*manifest\.json"):
        command("verify")
