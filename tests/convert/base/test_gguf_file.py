import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convert.base.gguf_file import MAX_STRING_BYTES, SUPPORTED, GgufFile
from openlora_jax.errors import BadCheckpoint, OpenLoraError, UnsupportedFeature

SHAPE = (6, 512)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(
    keys: list[bytes] | None = None, tensors: list[bytes] | None = None, version: int = 3, counts: Any = None
) -> bytes:
    """A GGUF header of finished parts; `counts` (tensors, keys) may lie."""
    keys, tensors = keys or [], tensors or []
    count = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(keys) + b"".join(tensors)


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return (
        string(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def padded(content: bytes, data: int = 0) -> bytes:
    return content + bytes(-len(content) % 32 + data)


def array(name: str, kind: int, count: int, items: bytes = b"") -> bytes:
    return string(name) + struct.pack("<IIQ", 9, kind, count) + items


def number(name: str, value: int) -> bytes:
    return string(name) + struct.pack("<II", 4, value)


def write(path: Path, kind: Kind, raw: NDArray[Any]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("first", np.arange(5, dtype=np.float32))
    writer.add_tensor("second", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("elements", [512, 1500, 1 << 20])
def test_every_type_is_dequantised_block_by_block(tmp_path: Path, name: str, elements: int) -> None:
    kind = Kind[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    if name in (
        "Q4_K",
        "Q6_K",
    ):  # the gguf package cannot quantise to these: any bytes are a value, but scales are halves
        raw = generator.integers(0, 60, (SHAPE[0], SHAPE[1] // block * block_bytes), np.uint8)
    else:
        raw = gguf.quants.quantize(generator.standard_normal(SHAPE, np.float32), kind)
    expected = gguf.quants.dequantize(raw, kind)
    with closing(GgufFile(write(tmp_path / "x.gguf", kind, raw))) as file:
        assert file.tensors["second"].shape == SHAPE
        blocks = list(file.blocks("second", elements))
        assert max(part.size for part in blocks) <= max(elements, SHAPE[1])
        np.testing.assert_array_equal(np.concatenate(blocks), expected)
        np.testing.assert_array_equal(np.concatenate(list(file.blocks("first", elements))), np.arange(5))
    assert np.abs(expected).max() > 0.1


def test_metadata_of_every_type(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    values: dict[str, tuple[Callable[[str, Any], None], Any]] = {
        "u8": (writer.add_uint8, 200),
        "i8": (writer.add_int8, -5),
        "u16": (writer.add_uint16, 60_000),
        "i16": (writer.add_int16, -5),
        "u32": (writer.add_uint32, 4_000_000_000),
        "i32": (writer.add_int32, -5),
        "u64": (writer.add_uint64, 1 << 63),
        "i64": (writer.add_int64, -(1 << 62)),
        "f32": (writer.add_float32, 0.5),
        "f64": (writer.add_float64, 0.1),
        "bool": (writer.add_bool, True),
        "string": (writer.add_string, "ü"),
        "strings": (writer.add_array, ["a", "", "ü"]),
        "numbers": (writer.add_array, [1, -2, 3]),
    }
    for name, (add, value) in values.items():
        add(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with closing(GgufFile(tmp_path / "x.gguf")) as file:
        assert {name: file.metadata[name] for name in values} == {name: value for name, (_, value) in values.items()}


MALFORMED: dict[str, tuple[bytes, type[OpenLoraError], str]] = {
    "empty": (b"", BadCheckpoint, "cut short"),
    "not GGUF": (b"GGML" + bytes(20), BadCheckpoint, "does not begin with GGUF"),
    "version 1": (header(version=1), UnsupportedFeature, "GGUF version 1"),
    "big-endian": (header(version=3 << 24), UnsupportedFeature, "GGUF version"),
    "tensor bomb": (header(counts=(1 << 60, 0)), BadCheckpoint, "tensors, more than the limit of 20,000"),
    "key bomb": (header(counts=(0, 1 << 60)), BadCheckpoint, "keys, more than the limit of 4,096"),
    "fewer keys than told": (header(counts=(0, 3)), BadCheckpoint, "cut short"),
    "string bomb": (header([struct.pack("<Q", 1 << 50)]), BadCheckpoint, "bytes of a string, more than the limit"),
    "array bomb": (header([array("a", 0, 1 << 50)]), BadCheckpoint, "items of an array, more than the limit"),
    "array cut short": (header([array("a", 4, 1000)]), BadCheckpoint, "cut short"),
    "array of arrays": (header([array("a", 9, 1)]), BadCheckpoint, "array of arrays"),
    "unknown value": (header([string("a") + struct.pack("<I", 77)]), BadCheckpoint, "value type 77"),
    "not UTF-8": (header([struct.pack("<Q", 1) + b"\xff"]), BadCheckpoint, "not UTF-8"),
    "key twice": (header([number("a", 1), number("a", 1)]), BadCheckpoint, "key 'a' occurs more than once"),
    "alignment 0": (padded(header([number("general.alignment", 0)])), BadCheckpoint, "alignment 0"),
    "alignment 3": (padded(header([number("general.alignment", 3)])), BadCheckpoint, "alignment 3"),
    "tensor twice": (header(tensors=[tensor("t", [8])] * 2), BadCheckpoint, "tensor 't' occurs more than once"),
    "no dimension": (header(tensors=[tensor("t", [])]), BadCheckpoint, "0 dimensions"),
    "four dimensions": (header(tensors=[tensor("t", [1] * 4)]), BadCheckpoint, "4 dimensions"),
    "a size of 0": (header(tensors=[tensor("t", [0])]), BadCheckpoint, "'t': shape [0]"),
    "a huge tensor": (padded(header(tensors=[tensor("t", [1 << 62, 1 << 62])])), BadCheckpoint, "cut short"),
    "a broken block": (header(tensors=[tensor("t", [33], kind=8)]), BadCheckpoint, "Q8_0 blocks of 32"),
    "unknown type": (header(tensors=[tensor("t", [8], kind=99)]), UnsupportedFeature, "type 99 of tensor 't'"),
    "Q2_K": (header(tensors=[tensor("t", [256], kind=10)]), UnsupportedFeature, "type Q2_K of tensor 't'"),
    "data cut short": (padded(header(tensors=[tensor("t", [8])]), 31), BadCheckpoint, "cut short"),
    "overlap": (
        padded(header(tensors=[tensor("s", [8]), tensor("t", [8], offset=0)]), 64),
        BadCheckpoint,
        "'t': at offset 0, not where",
    ),
    "a gap": (padded(header(tensors=[tensor("t", [8], offset=64)]), 96), BadCheckpoint, "'t': at offset 64"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, case: str) -> None:
    content, error, words = MALFORMED[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        GgufFile(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_header_has_a_limit_as_a_whole(tmp_path: Path) -> None:
    """Many strings, each within its own."""
    text = struct.pack("<IQ", 8, MAX_STRING_BYTES) + bytes(MAX_STRING_BYTES)
    (tmp_path / "x.gguf").write_bytes(header([string(str(key)) + text for key in range(33)]))
    with pytest.raises(BadCheckpoint, match="a header beyond the limit of 33,554,432 bytes"):
        GgufFile(tmp_path / "x.gguf")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), byte=st.integers(0, 255), length=st.integers(0, 1000))
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, position: int, byte: int, length: int) -> None:
    path = tmp_path / "x.gguf"
    keys = [number("a", 1), array("b", 8, 2, string("x") + string("y")), number("c", 2)]
    content = bytearray(padded(header(keys, [tensor("s", [8, 2]), tensor("t", [32], kind=8, offset=64)]), 64 + 34))
    content[min(position, len(content) - 1)] = byte
    path.write_bytes(content[:length])
    with suppress(OpenLoraError), closing(GgufFile(path)) as file:
        for name, info in file.tensors.items():
            assert sum(block.size for block in file.blocks(name, 100)) == np.prod(info.shape)
