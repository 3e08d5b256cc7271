"""The real SmolLM2-135M-Instruct, from its GGUF file; the ids are those of the tokenizer that transformers builds."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jinja2
import numpy as np
import pytest

from convert.base import convert_base
from convert.base.gguf_file import GgufFile
from convert.base.gguf_tokenizer import read_gguf_tokenizer
from convert.base.source import GgufSource
from openlora_jax.model.checkpoint import BaseManifest, read_weights
from openlora_jax.model.weights import weight_table
from pallas_kernels.quantized import QuantizedMatrix, dense
from tests.convert.base.peak import ROOT, peak_of_conversion

pytestmark = pytest.mark.real_model
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def gguf_path() -> Path:
    named = os.environ.get("OPENLORA_SMOLLM2_GGUF")
    found = [Path(named)] if named else sorted((ROOT / ".cache").rglob(NAME))
    if not found:
        pytest.skip(f"no {NAME} under .cache (`make base` fetches it) and OPENLORA_SMOLLM2_GGUF is not set")
    return found[0]


@pytest.fixture(scope="module")
def gguf_file(gguf_path: Path) -> Iterator[GgufFile]:
    with closing(GgufFile(gguf_path)) as file:
        yield file


IDS: list[tuple[str, list[int]]] = [
    ("Hello world", [19556, 905]),
    ("In 2024, 12345 x 67.89", [788, 216, 34, 32, 34, 36, 28, 216, 33, 34, 35, 36, 37, 1792, 216, 38, 39, 30, 40, 41]),
    ("  two  spaces\n\n\tend", [216, 827, 216, 5600, 1116, 197, 486]),
    ("naïve café 日本語 🦙", [3546, 46494, 37366, 17097, 241, 115, 40993, 179, 120, 248, 15107, 116, 243]),
    ("I'll don't WE'LL", [57, 3060, 1326, 982, 26587, 23, 16421]),
    ("x = [1, 2];  # note", [104, 446, 933, 33, 28, 216, 34, 26695, 216, 907, 4109]),
    ("<|im_start|>user\nHi<|im_end|>\n", [1, 4093, 198, 26843, 2, 198]),
]


@pytest.mark.parametrize(("text", "ids"), IDS)
def test_known_ids(gguf_file: GgufFile, text: str, ids: list[int]) -> None:
    tokenizer = read_gguf_tokenizer(gguf_file).tokenizer
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_known_ids_of_the_chat_template(gguf_file: GgufFile) -> None:
    files = read_gguf_tokenizer(gguf_file)
    assert files.chat_template is not None
    messages = [{"role": "user", "content": "What is 2+2?"}]
    text = jinja2.Template(files.chat_template).render(messages=messages, add_generation_prompt=True)
    system = [
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
        2,
        198,
    ]
    question = [1, 4093, 198, 1780, 314, 216, 34, 27, 34, 47, 2, 198]
    assert files.tokenizer.encode(text).ids == [*system, *question, 1, 520, 9531, 198]


@pytest.mark.slow
def test_in_int4_it_is_what_the_file_holds(gguf_path: Path, gguf_file: GgufFile, tmp_path: Path) -> None:
    """Q4_1 is int4 with offsets in groups of 32, and its embedding int8: no number changes."""
    config = convert_base(gguf_path, tmp_path / "base", "float32", lambda *_: None, "int4").manifest.config
    exact = GgufSource(gguf_file, config)
    values = read_weights(tmp_path / "base", config, "float32")
    for name, weight in weight_table(config).items():
        stored = np.concatenate([np.concatenate(list(exact.blocks(source))) for source, _ in weight.sources])
        found = dense(values[name]) if isinstance(values[name], QuantizedMatrix) else values[name]
        np.testing.assert_array_equal(found, stored, err_msg=name)


def test_the_conversion(gguf_path: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    peak = peak_of_conversion(gguf_path, base)
    manifest = BaseManifest.read(base)
    weights = read_weights(base, manifest.config, "float32")
    size = sum(weight.nbytes for weight in weights.values())
    assert size == 4 * 134_515_008
    assert peak < 1.3 * size + 500e6
    assert manifest.digest == "9889e2bfebb6806ab18831c6c14b3d2b196b5eeecf8d106eca1189959fec78d3"
    assert manifest.config.eos_token_ids == (2,)
    assert json.loads((base / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
