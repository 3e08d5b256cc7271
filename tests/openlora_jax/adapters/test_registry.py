"""The registry: the last complete line of a name counts, whoever wrote it, and a killed writer leaves no trace."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_jax.adapters.registry import Registry, check_name
from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnknownAdapter

A, B = "a" * 64, "b" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.jsonl"


def test_a_missing_file_is_an_empty_registry(path: Path) -> None:
    assert Registry(path).registrations() == {}
    with pytest.raises(UnknownAdapter, match="unknown adapter 'x'"):
        Registry(path).resolve("x")


def test_what_another_process_registers_is_seen_at_once(path: Path) -> None:
    reader, writer = Registry(path), Registry(path)
    with pytest.raises(UnknownAdapter):
        reader.resolve("x")
    writer.append({"x": A})
    assert reader.resolve("x") == A
    writer.append({"x": B})
    assert reader.resolve("x") == B
    writer.append({"x": None})
    with pytest.raises(UnknownAdapter):
        reader.resolve("x")
    assert reader.retired(timedelta()) == {A, B}


def test_a_torn_last_line_does_not_count_and_is_replaced(path: Path) -> None:
    Registry(path).append({"x": A, "y": A})
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]), len(whole)):
        path.write_bytes(whole[:cut])
        reader = Registry(path)
        assert set(reader.registrations()) == {"x"}
        Registry(path).append({"y": B})
        assert reader.resolve("y") == B
        assert len(path.read_bytes().splitlines()) == 2


def test_a_torn_line_replaced_by_one_of_the_same_length_is_seen(path: Path) -> None:
    Registry(path).append({"x": A})
    line = path.read_bytes()
    path.write_bytes(line + line.replace(b'"x"', b'"y"')[:-1] + b" ")
    reader = Registry(path)
    assert set(reader.registrations()) == {"x"}
    Registry(path).append({"z": B})
    assert reader.resolve("z") == B


@pytest.mark.parametrize(
    "line",
    ["", "[]", "{}", '{"name": "x"}', json.dumps({"name": "../x", "digest": A, "time": ""}), "\x00" * 8]
    + [json.dumps({"name": "x", "digest": digest, "time": ""}) for digest in ("../../etc", "A" * 64, 3, "")]
    + ['{"name":' * 100_000, json.dumps({"name": "x", "digest": None, "mix": {"y": 10**400}, "time": ""})],
    ids=lambda line: line[:40],
)
def test_a_damaged_line_is_an_error_that_names_it(path: Path, line: str) -> None:
    Registry(path).append({"x": A})
    with path.open("a") as file:
        file.write(line + "\n")
    registry = Registry(path)
    for _ in range(2):
        with pytest.raises(BadCheckpoint, match=r"registry\.jsonl: line 2 is no registration"):
            registry.resolve("x")


def test_without_the_damaged_line_the_store_goes_on(path: Path) -> None:
    registry = Registry(path)
    registry.append({"x": A})
    sound = path.read_bytes()
    path.write_bytes(sound + b"\x00\n" + sound.replace(b'"x"', b'"y"'))
    with pytest.raises(BadCheckpoint, match="line 2 is no registration; take it out or restore the file"):
        registry.resolve("x")
    path.write_bytes(sound + sound.replace(b'"x"', b'"y"'))
    assert set(registry.registrations()) == {"x", "y"}


def test_a_restored_file_is_read_anew(path: Path) -> None:
    registry = Registry(path)
    registry.append({"x": A, "y": A})
    assert set(registry.registrations()) == {"x", "y"}
    path.rename(path.with_suffix(".old"))
    Registry(path).append({"x": B})
    assert {name: entry.digest for name, entry in registry.registrations().items()} == {"x": B}


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from([A, B, None])), max_size=12))
def test_it_behaves_as_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("registry") / "registry.jsonl"
    reader, model = Registry(path), dict[str, str]()
    for name, digest in changes:
        Registry(path).append({name: digest})
        if digest is None:
            model.pop(name, None)
        else:
            model[name] = digest
        assert {known: entry.digest for known, entry in reader.registrations().items()} == model
    assert reader.retired(timedelta()) == {digest for _, digest in changes if digest} - set(model.values())


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "_x", "a/b", "a b", "a\n", "é", "a" * 129, "a\x00"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(InvalidRequest, match="name: "):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d", "a" * 128, "a..b"])
def test_a_name(name: str) -> None:
    check_name(name)


def test_a_version_without_mixes_takes_one_for_a_removed_name(path: Path) -> None:
    Registry(path).append({"x": A, "y": B})
    Registry(path).append({"x": {"y": 0.5}})
    entry = json.loads(path.read_text().splitlines()[-1])
    assert (entry["name"], entry["digest"], entry["mix"]) == ("x", None, {"y": 0.5})
    assert set(Registry(path).registrations()) == {"y"}
    assert Registry(path).retired(timedelta()) == {A}
