"""`convert base --quant`: every format from every source, and what is refused."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from convert.base import convert_base
from convert.base.hf_config import read_hf_config
from openlora_jax.errors import BadCheckpoint, InvalidRequest, UnsupportedFeature
from openlora_jax.model.checkpoint import BaseManifest, read_weights, write_weights
from openlora_jax.model.stored import parts, weight_bytes
from openlora_jax.model.weights import weight_table
from openlora_jax.quantization.format import WIDE, Format, Groups, Quantization
from openlora_jax.quantization.quantize import quantize
from pallas_kernels.quantized import QuantizedMatrix, dense
from tests.convert.base.checkpoints import CONFIG, Arrays, hf_tensors, write_gguf, write_hf

FIELDS = {
    **CONFIG,
    "vocab_size": 320,
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "bos_token_id": 259,
    "eos_token_id": 260,
}
WAYS: dict[tuple[Format, Groups | None, bool], Quantization] = {
    ("int8", None, False): Quantization(format="int8", group=32),
    ("int8", "row", False): Quantization(format="int8", group=None),
    ("int4", None, False): Quantization(format="int4", group=32, offsets="float16"),
    ("int4", "128", True): Quantization(format="int4", group=128),
    ("nf4", None, False): Quantization(format="nf4", group=64),
}


def ignore(stage: str, done: int, total: int) -> None:
    """No progress bar."""


def model(folder: Path, **changes: Any) -> tuple[Path, Arrays]:
    fields = {**FIELDS, **changes}
    write_hf(folder, fields, None)
    tensors = hf_tensors(read_hf_config(folder))
    return write_hf(folder, fields, tensors), tensors


def numbers(weight: Any) -> Any:
    return dense(weight) if isinstance(weight, QuantizedMatrix) else weight


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_every_matrix_is_its_sources_joined_and_quantised(
    tmp_path: Path, way: tuple[Format, Groups | None, bool], tied: bool
) -> None:
    source, tensors = model(tmp_path / "hf", tie_word_embeddings=tied)
    report = convert_base(source, tmp_path / "base", "float32", ignore, *way)
    manifest = BaseManifest.read(tmp_path / "base")
    assert manifest == report.manifest
    assert manifest.config.quantization == WAYS[way]
    values = read_weights(tmp_path / "base", manifest.config, "float32")
    for name, weight in weight_table(manifest.config).items():
        joined = np.concatenate([tensors[part] for part, _ in weight.sources])
        if joined.ndim == 1:
            np.testing.assert_array_equal(values[name], joined)
            continue
        how = WIDE if name in ("embed.weight", "head.weight") else WAYS[way]
        for found, expected in zip(jax.tree.leaves(values[name]), quantize(joined, how), strict=False):
            np.testing.assert_array_equal(found, expected, err_msg=name)
    assert report.bytes == weight_bytes(manifest.config, "float32")
    assert report.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(values))
    assert report.parameters == sum(tensor.size for tensor in tensors.values())


EXACT: dict[str, tuple[Format, bool]] = {"Q4_1": ("int4", False), "Q4_0": ("int4", True), "Q8_0": ("int8", False)}


@pytest.mark.parametrize("kind", [*EXACT, "Q4_0 with offsets"])
def test_numbers_of_a_gguf_file_stay_what_they_are(tmp_path: Path, kind: str) -> None:
    """Its codes are taken over. The embedding is Q8_0, as llama-quantize makes it where it serves as the head."""
    source, tensors = model(tmp_path / "hf", tie_word_embeddings=True)
    name = kind.split()[0]
    kinds = {tensor: GGMLQuantizationType[name] for tensor, value in tensors.items() if value.ndim == 2}
    kinds["model.embed_tokens.weight"] = GGMLQuantizationType.Q8_0
    file = write_gguf(tmp_path / "model.gguf", read_hf_config(source), tensors, kinds=kinds)
    how, symmetric = EXACT[name]
    plain = convert_base(file, tmp_path / "plain", "float32", ignore).manifest.config
    config = convert_base(file, tmp_path / "few", "float32", ignore, how, None, symmetric and " " not in kind)
    exact = read_weights(tmp_path / "plain", plain, "float32")
    for name, weight in read_weights(tmp_path / "few", config.manifest.config, "float32").items():
        np.testing.assert_array_equal(numbers(weight), exact[name], err_msg=name)


def test_other_groups_are_quantised_anew(tmp_path: Path) -> None:
    source, tensors = model(tmp_path / "hf")
    kinds = {name: GGMLQuantizationType.Q4_1 for name, value in tensors.items() if value.ndim == 2}
    file = write_gguf(tmp_path / "model.gguf", read_hf_config(source), tensors, kinds=kinds)
    config = convert_base(file, tmp_path / "few", "float32", ignore, "int4", "64").manifest.config
    down = read_weights(tmp_path / "few", config, "float32")["layers.0.down.weight"]
    stored = gguf.quants.quantize(tensors["model.layers.0.mlp.down_proj.weight"], GGMLQuantizationType.Q4_1)
    expected = quantize(gguf.quants.dequantize(stored, GGMLQuantizationType.Q4_1), config.quantization or WIDE)
    np.testing.assert_array_equal(dense(down), dense(expected))


def test_the_digest_covers_the_format(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    ways: list[tuple[Any, ...]] = [(), *WAYS, next(iter(WAYS))]
    digests = [
        convert_base(source, tmp_path / str(index), "float32", ignore, *way).manifest.digest
        for index, way in enumerate(ways)
    ]
    assert len(set(digests)) == len(ways) - 1
    assert digests[-1] == digests[1]


@pytest.mark.parametrize("quant", ["int4", "nf4"])
def test_columns_that_cannot_be_packed_are_refused(tmp_path: Path, quant: Format) -> None:
    source, _ = model(tmp_path / "hf", intermediate_size=112)
    with pytest.raises(UnsupportedFeature, match=r"of layers.0.down.weight: 112 columns .* is not supported; use int8"):
        convert_base(source, tmp_path / "base", "float32", ignore, quant)
    assert not (tmp_path / "base").exists()
    convert_base(source, tmp_path / "base", "float32", ignore, "int8")


def test_only_int4_can_be_made_symmetric(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "hf")
    with pytest.raises(InvalidRequest, match="--symmetric: nf4 is symmetric in any case"):
        convert_base(source, tmp_path / "base", "float32", ignore, "nf4", None, True)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_values_without_a_finite_scale_are_refused(tmp_path: Path, value: float) -> None:
    source, tensors = model(tmp_path / "hf")
    tensors["model.layers.0.self_attn.v_proj.weight"][3, 4] = value
    write_hf(source, FIELDS, tensors)
    problem = r"tensor \S+v_proj.weight in model.safetensors: holds NaN or an infinity as int4 in groups of 32"
    with pytest.raises(BadCheckpoint, match=problem):
        convert_base(source, tmp_path / "base", "float32", ignore, "int4")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("part", ["scale", "offset"])
def test_a_corrupt_scale_of_a_gguf_file_is_refused(tmp_path: Path, part: str) -> None:
    source, tensors = model(tmp_path / "hf")
    name = "model.layers.0.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "model.gguf", read_hf_config(source), tensors, kinds={name: GGMLQuantizationType.Q4_1})
    stored = gguf.quants.quantize(tensors[name], GGMLQuantizationType.Q4_1)
    content = file.read_bytes()
    start = content.index(stored.tobytes())
    place = start + {"scale": 0, "offset": 2}[part] + 20 * 5
    file.write_bytes(content[:place] + np.float16(np.nan).tobytes() + content[place + 2 :])
    with pytest.raises(BadCheckpoint, match=rf"tensor {name} in model.gguf: holds NaN or an infinity as int4"):
        convert_base(file, tmp_path / "base", "float32", ignore, "int4")


@pytest.mark.parametrize(("part", "value"), [("scale", np.nan), ("offset", -np.inf)])
def test_corrupt_scales_of_a_base_are_refused(tmp_path: Path, part: str, value: float) -> None:
    source, _ = model(tmp_path / "hf")
    config = convert_base(source, tmp_path / "base", "float32", ignore, "int4").manifest.config
    values = {
        key: np.array(array)
        for name, weight in read_weights(tmp_path / "base", config, "float32").items()
        for key, array in parts(name, weight).items()
    }
    values[f"layers.0.o.weight.{part}"][2, 1] = value
    write_weights(tmp_path / "other", values)
    with pytest.raises(BadCheckpoint, match=rf"layers\.0\.o\.weight\.{part} holds NaN or an infinity"):
        read_weights(tmp_path / "other", config, "float32")


@pytest.mark.parametrize(
    "change", [{"format": "int3"}, {"group": 48}, {"format": "nf4"}, {"offsets": "int8"}, {"bits": 4}], ids=str
)
def test_a_manifest_of_another_format_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    source, _ = model(tmp_path / "hf")
    manifest = convert_base(source, tmp_path / "base", "float32", ignore, "int4").manifest
    fields = json.loads((tmp_path / "base" / "manifest.json").read_text())
    assert manifest.config.quantization
    fields["config"]["quantization"] = asdict(manifest.config.quantization) | change
    (tmp_path / "base" / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(BadCheckpoint, match=r"config\.quantization.* convert the model again|convert the model again"):
        BaseManifest.read(tmp_path / "base")


def test_a_converted_base_can_be_quantised(tmp_path: Path) -> None:
    """A merged one, for example. It becomes what its own source would have become."""
    source, _ = model(tmp_path / "hf", tie_word_embeddings=True)
    convert_base(source, tmp_path / "plain", "float32", ignore)
    direct = convert_base(source, tmp_path / "direct", "float32", ignore, "int4").manifest
    report = convert_base(tmp_path / "plain", tmp_path / "few", "float32", ignore, "int4")
    assert report.manifest.digest == direct.digest
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "few" / file).read_text() == (tmp_path / "plain" / file).read_text()
    with pytest.raises(UnsupportedFeature, match="converting int4 in groups of 32, with offsets once more"):
        convert_base(tmp_path / "few", tmp_path / "again", "float32", ignore, "int8")
