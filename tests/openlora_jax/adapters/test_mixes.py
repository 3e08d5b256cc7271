"""Mixes under names of their own: what they may hold, and what becomes of them when their members change."""

from pathlib import Path

import pytest

from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.mixes import MAX_MIX
from openlora_jax.adapters.registry import Names, Registration, Registry
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.adapters.traits import Traits
from openlora_jax.errors import AdapterExists, BadCheckpoint, InvalidRequest, UnknownAdapter
from tests.openlora_jax.tiny import MODEL

BASE = "0" * 64
MANY = {f"n{index}": 1.0 for index in range(MAX_MIX + 1)}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    opened = AdapterStore.create(tmp_path)
    install_synthetic(opened, MODEL, BASE, {"a": 1, "b": 2, "c": 3})
    return opened


def members(store: AdapterStore, name: str) -> list[tuple[str, float]]:
    found = store.members(name)
    assert [member.digest for member in found] == [store.resolve(member.adapter) for member in found]
    return [(member.adapter, member.weight) for member in found]


def test_a_mix_stands_for_its_members_whoever_reads_it(store: AdapterStore) -> None:
    reader = AdapterStore(store.path)
    assert members(reader, "a") == [("a", 1.0)]
    store.mix("m", {"b": 0.25, "a": -3.0})
    assert members(reader, "m") == [("b", 0.25), ("a", -3.0)]
    assert set(reader.registrations()) == {"a", "b", "c"}, "what lists adapters lists no mix"
    with pytest.raises(InvalidRequest, match=r"'m' is the mix 0\.25 b \+ -3 a; name one adapter"):
        reader.resolve("m")


def test_a_mix_follows_a_member_that_is_replaced(store: AdapterStore) -> None:
    store.mix("m", {"a": 0.5, "b": 0.5})
    before = store.members("m")
    store.register({"a": store.resolve("c")}, replace=True)
    after = store.members("m")
    assert before[0].digest != after[0].digest
    assert before[1] == after[1]


def test_a_member_stays_as_long_as_the_mix(store: AdapterStore) -> None:
    store.mix("m", {"a": 0.5, "b": 0.5})
    with pytest.raises(InvalidRequest, match="'a' is a member of the mix 'm'; remove or replace that first"):
        store.remove("a")
    with pytest.raises(InvalidRequest, match="'a' is a member of the mix 'm'"):
        store.mix("a", {"b": 1.0}, replace=True)
    store.remove("m")
    store.remove("a")
    with pytest.raises(UnknownAdapter, match="'m'"):
        store.members("m")


def test_names_are_taken_and_replaced_across_kinds(store: AdapterStore) -> None:
    store.mix("m", {"a": 0.5})
    lines = (store.path / "registry.jsonl").read_bytes()
    store.mix("m", {"a": 0.5})
    assert (store.path / "registry.jsonl").read_bytes() == lines, "the same again changes nothing"
    with pytest.raises(InvalidRequest, match=r"'m' is already the mix 0\.5 a; use --replace"):
        store.mix("m", {"a": 0.6})
    with pytest.raises(InvalidRequest, match=r"'m' is already the mix 0\.5 a; use --replace"):
        store.register({"m": store.resolve("c")})
    with pytest.raises(AdapterExists):
        store.mix("c", {"a": 0.5})
    store.mix("c", {"a": 0.5}, replace=True)
    assert members(store, "c") == [("a", 0.5)]
    store.register({"m": store.resolve("b")}, replace=True)
    assert members(store, "m") == [("m", 1.0)]


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("m", {}, "mix: has no member"),
        ("m", {"m": 1.0}, "mix: has itself as a member"),
        ("m", {"a": float("nan")}, "weight nan of adapter 'a' is not a number within 3.40282e[+]38"),
        ("m", {"a": float("inf")}, "weight inf"),
        ("m", {"a": -3.41e38}, r"weight -3\.41e\+38"),
        ("m", MANY, "9 adapters are more than the 8 allowed"),
        ("m", {"a": 1.0, "there": 1.0}, "'there' was converted for base 111111111111, and 'a' for 000000000000"),
        ("m", {"mixed": 1.0}, "'mixed' is the mix 1 a; name one adapter"),
        ("-m", {"a": 1.0}, "name: '-m' must be"),
    ],
)
def test_what_can_be_no_mix(store: AdapterStore, name: str, weights: dict[str, float], message: str) -> None:
    install_synthetic(store, MODEL, "1" * 64, {"there": 4})
    store.mix("mixed", {"a": 1.0})
    with pytest.raises(InvalidRequest, match=message):
        store.mix(name, weights)
    with pytest.raises(UnknownAdapter, match="'nobody'"):
        store.mix("m", {"a": 1.0, "nobody": 1.0})
    assert set(store.names().mixes) == {"mixed"}


@pytest.mark.parametrize(
    "mix", ["3", "[]", "{}", '{"a": "b"}', '{"a": NaN}', '{"a": 1e999}', '{"a": null}', '{"../a": 1}', '{"a": 1e39}']
)
def test_a_damaged_line_of_a_mix(tmp_path: Path, mix: str) -> None:
    path = tmp_path / "registry.jsonl"
    path.write_text(f'{{"name": "m", "digest": null, "mix": {mix}, "time": ""}}\n')
    with pytest.raises(BadCheckpoint, match="line 1 is no registration"):
        Registry(path).names()


def test_names_of_two_stores(store: AdapterStore) -> None:
    here, there = Registration("a" * 64, ""), Registration("b" * 64, "")
    store.mix("m", {"a": 1.0})
    mix = store.names().mixes["m"]
    near = Names({"a": here, "x": here}, {"y": mix})
    far = Names({"a": there, "b": there, "y": there}, {"x": mix, "m": mix})
    both = near.before(far)
    assert both.adapters == {"a": here, "x": here, "b": there}
    assert both.mixes == {"m": mix, "y": mix}
    assert [member.digest for member in both.members("m")] == [here.digest], "a member's name is looked up here first"


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        (Traits(gains=True), r"'a' is a DoRA adapter, whose gain .* is not linear"),
        (Traits(saved=True), r"'a' has modules of its own in the place of the base's \(modules_to_save\)"),
    ],
)
def test_what_is_not_linear_is_in_no_sum(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch, traits: Traits, reason: str
) -> None:
    monkeypatch.setattr(Manifest, "traits", traits)
    for weights in ({"a": 0.5, "b": 0.5}, {"a": 0.5}):
        with pytest.raises(InvalidRequest, match=reason):
            store.mix("m", weights)
    store.mix("alias", {"a": 1.0})
