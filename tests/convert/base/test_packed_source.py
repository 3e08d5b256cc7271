"""GPTQ's and AWQ's checkpoints, packed here number by number as the formats are described."""

import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from convert.base import convert_base, packed_source
from convert.base.hf_config import read_hf_config
from convert.base.hf_packing import Packing
from convert.base.packed_source import PackedSource
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest, read_weights
from openlora_jax.model.weights import weight_table
from openlora_jax.quantization.format import Groups, Quantization
from openlora_jax.quantization.quantize import quantize
from pallas_kernels.quantized import Int4Matrix, QuantizedMatrix, dense
from tests.convert.base.checkpoints import CONFIG, hf_tensors, write_hf

FIELDS = {**CONFIG, "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96}
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which four bits, counted from the lowest, the first, the second ... of eight columns lies."""


class Packed(NamedTuple):
    """A matrix as it is packed, and the numbers that it stands for."""

    tensors: dict[str, NDArray[Any]]
    numbers: NDArray[np.float64]


def pack(
    method: str, shape: tuple[int, ...], group: int, seed: int, zero_less: int = 0, symmetric: bool = False
) -> Packed:
    """Random codes, scales and zero points of `[rows, columns]`; `zero_less` is what is taken off zero points."""
    generator = np.random.default_rng(seed)
    rows, columns = shape
    groups = -(-columns // group)
    codes = generator.integers(0, 16, (columns, rows))
    zeros = np.full((groups, rows), 8) if symmetric else generator.integers(1, 16, (groups, rows))
    scales = generator.uniform(0.001, 0.02, (groups, rows)).astype(np.float16)
    numbers = np.empty((rows, columns))
    for column in range(columns):
        numbers[:, column] = scales[column // group].astype(np.float64) * (codes[column] - zeros[column // group])
    words = by_rows(codes) if method == "gptq" else by_columns(codes, AWQ_PLACES)
    order = tuple(range(8)) if method == "gptq" else AWQ_PLACES
    tensors: dict[str, NDArray[Any]] = {
        "qweight": words,
        "qzeros": by_columns(zeros - zero_less, order),
        "scales": scales,
    }
    if method == "gptq":
        tensors["g_idx"] = (np.arange(columns) // group).astype(np.int32)
    return Packed(tensors, numbers)


def by_rows(codes: NDArray[np.int64]) -> NDArray[np.int32]:
    words = [
        sum(int(codes[8 * word + place, column]) << 4 * place for place in range(8))
        for word, column in np.ndindex(len(codes) // 8, codes.shape[1])
    ]
    return np.array(words, np.uint32).view(np.int32).reshape(len(codes) // 8, -1)


def by_columns(codes: NDArray[np.int64], places: tuple[int, ...]) -> NDArray[np.int32]:
    words = [
        sum(int(codes[row, 8 * word + column]) << 4 * place for column, place in enumerate(places))
        for row, word in np.ndindex(len(codes), codes.shape[1] // 8)
    ]
    return np.array(words, np.uint32).view(np.int32).reshape(len(codes), -1)


SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"},
    "gptq symmetric": {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True},
    "gptq rows": {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
}


def checkpoint(folder: Path, settings: dict[str, Any]) -> tuple[Path, dict[str, Any], dict[str, NDArray[Any]]]:
    """A directory whose layers are packed; its tensors, and the numbers of all of them."""
    fields = {**FIELDS, "quantization_config": settings}
    write_hf(folder, fields, None)
    plain = hf_tensors(read_hf_config(folder))
    stored: dict[str, Any] = {}
    numbers: dict[str, NDArray[Any]] = dict(plain)
    less = int(settings["quant_method"] == "gptq" and settings.get("checkpoint_format", "gptq") == "gptq")
    symmetric = settings["quant_method"] == "gptq" and settings["sym"]
    for seed, (name, tensor) in enumerate(plain.items()):
        if "proj.weight" not in name:
            stored[name] = tensor
            continue
        group = settings["group_size"] if settings["group_size"] > 0 else tensor.shape[1]
        packed = pack(settings["quant_method"], tensor.shape, group, seed, less, symmetric)
        stored |= {f"{name.removesuffix('.weight')}.{part}": array for part, array in packed.tensors.items()}
        numbers[name] = packed.numbers
    return write_hf(folder, fields, stored), stored, numbers


def ignore(stage: str, done: int, total: int) -> None:
    """No progress bar."""


ASKED: list[tuple[str, Groups | None, bool]] = [
    *((kind, None, False) for kind in SETTINGS),
    ("gptq symmetric", "64", False),
    ("gptq symmetric", None, True),
    ("gptq symmetric", "64", True),
    ("gptq rows", "row", False),
    ("awq", "32", False),
]
"""Ways to ask for what a checkpoint has: by the name of the format, and by what else agrees with it."""


@pytest.mark.parametrize(("kind", "groups", "symmetric"), ASKED)
def test_codes_are_taken_over(tmp_path: Path, kind: str, groups: Groups | None, symmetric: bool) -> None:
    source, _, numbers = checkpoint(tmp_path / "hf", SETTINGS[kind])
    config = convert_base(source, tmp_path / "base", "float32", ignore, "int4", groups, symmetric).manifest.config
    group = SETTINGS[kind]["group_size"]
    assert config.quantization
    assert config.quantization.format == "int4"
    assert config.quantization.group == (None if group < 0 else group)
    assert config.quantization.offsets == (None if SETTINGS[kind].get("sym") else "float32")
    values = read_weights(tmp_path / "base", config, "float32")
    for name, weight in weight_table(config).items():
        if name.startswith("layers") and len(weight.shape) == 2:
            exact = np.concatenate([numbers[part] for part, _ in weight.sources])
            assert isinstance(values[name], Int4Matrix)
            np.testing.assert_array_equal(dense(values[name]), exact.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_matrix_is_unpacked_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """In memory are its words, and a block of its codes: together less than a byte for each code."""
    monkeypatch.setattr(packed_source, "BLOCK_ELEMENTS", 4096)
    rows, columns = 512, 1024
    generator = np.random.default_rng(0)
    shape = (columns // 8, rows) if kind == "gptq" else (columns, rows // 8)
    words = generator.integers(-(1 << 31), 1 << 31, shape, np.int32)
    zeros, scales = np.zeros((columns // 32, rows // 8), np.int32), np.ones((columns // 32, rows), np.float16)
    save_file({"m.qweight": words, "m.qzeros": zeros, "m.scales": scales}, tmp_path / "model.safetensors")
    how = Quantization(format="int4", group=32, offsets="float32")
    source = PackedSource(tmp_path, Packing("gptq" if kind == "gptq" else "awq", 0, how))
    tracemalloc.start()
    try:
        found = source.packed("m.weight", how)
        assert found is not None
        assert [len(block.codes) for block in found] == [8] * (rows // 8)
        assert tracemalloc.get_traced_memory()[1] < rows * columns
    finally:
        tracemalloc.stop()
        source.close()


def test_biases_of_zeros_that_the_family_does_not_have_are_left_out(tmp_path: Path) -> None:
    """GPTQ's tools write one beside every matrix."""
    source, stored, numbers = checkpoint(tmp_path / "hf", SETTINGS["gptq"])
    biases = {
        f"{name.removesuffix('.weight')}.bias": np.zeros(len(matrix), np.float16)
        for name, matrix in numbers.items()
        if "proj.weight" in name
    }
    convert_base(source, tmp_path / "without", "float32", ignore, "int4")
    write_hf(source, {**FIELDS, "quantization_config": SETTINGS["gptq"]}, stored | biases)
    convert_base(source, tmp_path / "with", "float32", ignore, "int4")
    assert BaseManifest.read(tmp_path / "with").digest == BaseManifest.read(tmp_path / "without").digest
    biases["model.layers.0.mlp.up_proj.bias"][5] = 0.5
    write_hf(source, {**FIELDS, "quantization_config": SETTINGS["gptq"]}, stored | biases)
    problem = r"mlp.up_proj.bias is not zero, and family llama has no bias there; use the checkpoint that it was made"
    with pytest.raises(BadCheckpoint, match=problem):
        convert_base(source, tmp_path / "refused", "float32", ignore, "int4")


OTHERS: dict[tuple[str, Groups | None, bool], Quantization] = {
    ("awq", "64", False): Quantization(format="int4", group=64, offsets="float16"),
    ("awq", None, True): Quantization(format="int4", group=32),
    ("gptq symmetric", "32", True): Quantization(format="int4", group=32),
}


@pytest.mark.parametrize("asked", OTHERS, ids=str)
def test_what_contradicts_a_checkpoint_is_made_as_it_was_asked_for(
    tmp_path: Path, asked: tuple[str, Groups | None, bool]
) -> None:
    kind, groups, symmetric = asked
    source, _, _ = checkpoint(tmp_path / "hf", SETTINGS[kind])
    config = convert_base(source, tmp_path / "base", "float32", ignore, "int4", groups, symmetric).manifest.config
    assert config.quantization == OTHERS[asked]


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_other_formats_are_made_of_the_numbers(tmp_path: Path, kind: str) -> None:
    source, _, numbers = checkpoint(tmp_path / "hf", SETTINGS[kind])
    plain = convert_base(source, tmp_path / "plain", "float32", ignore).manifest.config
    few = convert_base(source, tmp_path / "few", "float32", ignore, "int8").manifest.config
    exact = numbers["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
    found = read_weights(tmp_path / "plain", plain, "float32")["layers.0.down.weight"]
    np.testing.assert_array_equal(found, exact)
    down = read_weights(tmp_path / "few", few, "float32")["layers.0.down.weight"]
    assert few.quantization
    assert isinstance(down, QuantizedMatrix)
    np.testing.assert_array_equal(dense(down), dense(quantize(exact, few.quantization)))


UNSUPPORTED = {
    "another method": (
        {"quant_method": "bitsandbytes", "bits": 4},
        "quant_method 'bitsandbytes' of quantization_config",
    ),
    "no method": ({"bits": 4}, "quant_method 'None' of quantization_config"),
    "3 bits": ({**SETTINGS["gptq"], "bits": 3}, "bits '3' of quantization_config"),
    "small groups": ({**SETTINGS["awq"], "group_size": 16}, "group_size '16' of quantization_config"),
    "marlin": ({**SETTINGS["gptq"], "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
    "gemv": ({**SETTINGS["awq"], "version": "gemv"}, "version 'gemv'"),
    "no zero points": ({**SETTINGS["awq"], "zero_point": False}, "zero_point 'False'"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_is_packed_in_another_way_is_refused(tmp_path: Path, kind: str) -> None:
    settings, problem = UNSUPPORTED[kind]
    source = write_hf(tmp_path / "hf", {**FIELDS, "quantization_config": settings}, None)
    with pytest.raises(UnsupportedFeature, match=problem):
        convert_base(source, tmp_path / "base", "float32", ignore, "int4")


def damage(stored: dict[str, Any], kind: str) -> None:
    stem = "model.layers.0.mlp.up_proj"
    if kind == "no scales":
        del stored[f"{stem}.scales"]
    elif kind == "scales of another shape":
        stored[f"{stem}.scales"] = stored[f"{stem}.scales"][:1]
    elif kind == "NaN":
        stored[f"{stem}.scales"][1, 3] = np.nan
    elif kind == "too small":
        stored[f"{stem}.scales"] = np.full(stored[f"{stem}.scales"].shape, 1.1e-7, ml_dtypes.bfloat16)
    elif kind in ("inexact", "too large"):
        stored[f"{stem}.scales"] = stored[f"{stem}.scales"].astype(np.float32)
        stored[f"{stem}.scales"][1, 3] = 0.01 if kind == "inexact" else 1e6
    elif kind == "desc_act":
        stored[f"{stem}.g_idx"] = stored[f"{stem}.g_idx"][::-1].copy()
    elif kind == "half a word":
        stored[f"{stem}.qweight"] = stored[f"{stem}.qweight"][:, :-4]
        stored[f"{stem}.scales"] = stored[f"{stem}.scales"][:, :-4]
        stored[f"{stem}.qzeros"] = stored[f"{stem}.qzeros"][:, :-1]
    elif kind == "not symmetric":
        stored[f"{stem}.qzeros"][0, 0] ^= 1


DAMAGED = {
    "no scales": (SETTINGS["gptq"], "model.layers.0.mlp.up_proj has no scales"),
    "scales of another shape": (SETTINGS["awq"], r"up_proj.scales has shape \(1, 96\), qweight asks for \(2, 96\)"),
    "NaN": (SETTINGS["gptq"], "tensor model.layers.0.mlp.up_proj.weight in model.safetensors: holds NaN"),
    "too small": (SETTINGS["awq"], r"a scale of \S+up_proj in bfloat16 that float16 does not hold exactly is not"),
    "inexact": (SETTINGS["gptq"], "in float32 that float16 does not hold exactly .*; use the checkpoint that it was"),
    "too large": (SETTINGS["gptq"], r"a scale of \S+up_proj in float32 that float16 does not hold exactly is not"),
    "desc_act": (SETTINGS["gptq"], "desc_act of model.layers.0.mlp.up_proj, whose groups are no neighbours"),
    "half a word": (SETTINGS["gptq"], "up_proj.qweight has 92 rows, whose zero points are not whole words of 8"),
    "not symmetric": (SETTINGS["gptq symmetric"], "up_proj.qzeros are not all 8, although sym is true"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    settings, problem = DAMAGED[kind]
    source, stored, _ = checkpoint(tmp_path / "hf", settings)
    damage(stored, kind)
    write_hf(source, {**FIELDS, "quantization_config": settings}, stored)
    with pytest.raises((BadCheckpoint, UnsupportedFeature), match=problem):
        convert_base(source, tmp_path / "base", "float32", ignore, "int4")
