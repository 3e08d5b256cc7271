import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from openlora_jax.errors import BadCheckpoint
from openlora_jax.safetensors_file import SafetensorsFile

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(3, ml_dtypes.bfloat16),
    "c": np.full((1, 2, 2), 0.5, np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [start, end]}


def test_tensors_come_back(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.tensors.keys() == TENSORS.keys()
        for name, expected in TENSORS.items():
            tensor = file.read(name)
            assert tensor.dtype == expected.dtype
            np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("elements", [1, 3, 4, 100])
def test_blocks_join_to_the_tensor(tmp_path: Path, elements: int) -> None:
    save_file(TENSORS, tmp_path / "x")
    with SafetensorsFile(tmp_path / "x") as file:
        for name in ("a", "b", "c"):
            np.testing.assert_array_equal(np.concatenate(list(file.blocks(name, elements))), TENSORS[name])
        assert list(file.blocks("empty", elements)) == []


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "length alone": (raw(b"", length=50), "cut short"),
    "header bomb": (raw(b"{}", length=100 << 20), "104,857,600 bytes, more than the limit of 4,194,304"),
    "length of 2^64": (b"\xff" * 8 + b"{}", "more than the limit"),
    "no JSON": (raw(b"\x80abc"), "is not JSON"),
    "a list": (raw([]), "JSON object"),
    "nested deep": (raw(b'{"a":' * 100_000), "nested too deep"),
    "a key twice": (raw(b'{"a": 1, "a": 2}'), "'a' occurs more than once"),
    "a key twice inside": (raw(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' occurs more than once"),
    "entry bomb": (raw({f"t{i}": 0 for i in range(20_001)}), "20,001 tensors, more than the limit of 20,000"),
    "long name": (raw({"n" * 257: entry(0, 4)}, b"0000"), "limit of 256 bytes"),
    "no entry": (raw({"a": 3}), "'a': the entry must hold exactly"),
    "an extra key": (raw({"a": {**entry(0, 4), "x": 1}}, b"0000"), "exactly"),
    "a foreign dtype": (raw({"a": entry(0, 4, dtype="I32")}, b"0000"), "'a': dtype I32 is not one of F32, F16, BF16"),
    "fp8": (raw({"a": entry(0, 1, dtype="F8_E4M3")}, b"0"), "dtype F8_E4M3"),
    "a dtype of a list": (raw({"a": entry(0, 4, dtype=["F32"])}, b"0000"), "dtype"),
    "four dimensions": (raw({"a": entry(0, 4, [1, 1, 1, 1])}, b"0000"), "4 dimensions, more than the limit of 3"),
    "a negative size": (raw({"a": entry(0, 4, [-1, -1])}, b"0000"), "list of sizes"),
    "a size of a bool": (raw({"a": entry(0, 4, [True])}, b"0000"), "list of sizes"),
    "a size of a float": (raw({"a": entry(0, 4, [1.0])}, b"0000"), "list of sizes"),
    "a huge size": (raw({"a": entry(0, 4, [1 << 62, 1 << 62])}, b"0000"), "list of sizes"),
    "too few bytes": (raw({"a": entry(0, 4, [2])}, b"0000"), "needs 8 bytes, data_offsets give 4"),
    "backwards": (raw({"a": entry(4, 0)}, b"0000"), "data_offsets give -4"),
    "one offset": (raw({"a": {**entry(0, 4), "data_offsets": [0]}}, b"0000"), "two byte offsets"),
    "out of the file": (raw({"a": entry(0, 8, [2])}, b"0000"), "cut short"),
    "overlap": (raw({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"0" * 12), "'b': starts at byte"),
    "a gap": (raw({"a": entry(0, 4), "b": entry(8, 12)}, b"0" * 12), "'b': starts at byte"),
    "a gap in front": (raw({"a": entry(4, 8)}, b"0" * 8), "'a': starts at byte"),
    "bytes behind": (raw({"a": entry(0, 4)}, b"0" * 9), "5 bytes after the last tensor"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, case: str) -> None:
    content, words = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint) as caught:
        SafetensorsFile(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_all_problems_are_told_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(raw({f"t{i}": entry(0, 4, dtype="I8") for i in range(30)}))
    with pytest.raises(BadCheckpoint) as caught:
        SafetensorsFile(tmp_path / "x")
    assert len(caught.value.problems) == 30
    assert str(caught.value).endswith("; and 10 more")


def test_a_file_that_is_swapped_stays_the_one_that_was_checked(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x")
    (tmp_path / "other").write_bytes(b"")
    with SafetensorsFile(tmp_path / "x") as file:
        (tmp_path / "other").replace(tmp_path / "x")
        for name, expected in TENSORS.items():
            np.testing.assert_array_equal(file.read(name), expected)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file(TENSORS, path)
    with SafetensorsFile(path) as file, path.open("r+b") as other:
        other.truncate(file.tensors["a"].start + 2)
        with pytest.raises(BadCheckpoint, match="shorter while tensor a"):
            file.read("a")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), byte=st.integers(0, 255), length=st.integers(0, 400))
def test_a_damaged_header_is_refused_or_read(tmp_path: Path, position: int, byte: int, length: int) -> None:
    content = bytearray(save(TENSORS))
    content[position] = byte
    (tmp_path / "x").write_bytes(content[:length])
    with suppress(BadCheckpoint), SafetensorsFile(tmp_path / "x") as file:
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
