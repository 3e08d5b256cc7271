from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.base.hf_config import read_hf_config
from openlora_jax.bench.quantised.measure import LOADING
from openlora_jax.bench.quantised.memory import peak
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.stored import weight_bytes
from tests.convert.base.checkpoints import CONFIG, hf_tensors, write_hf
from tests.convert.base.peak import peak_of_conversion

LARGE = {
    **CONFIG,
    "vocab_size": 64_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}


SMALL = {**LARGE, "vocab_size": 48_000, "hidden_size": 512, "intermediate_size": 2048}


@pytest.mark.parametrize("fields", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["small", "large"])
def test_a_quantised_model_takes_no_more_than_itself_and_one_tensor(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Neither to make it nor to load it; the libraries' own memory left out. In float32 it would be twice as much."""
    source = write_hf(tmp_path / "hf", fields, None)
    config = read_hf_config(source)
    tensors = hf_tensors(config)
    largest = max(tensor.nbytes for tensor in tensors.values())
    plain = sum(tensor.nbytes for tensor in tensors.values())
    write_hf(source, fields, tensors)
    del tensors
    convert = ("openlora_jax", "convert", "base", str(source))
    alone = peak(*convert, str(source), status=2)
    converting = peak(*convert, str(tmp_path / "base"), "--quant", "int4") - alone
    loading = peak(LOADING, str(tmp_path / "base")) - peak(LOADING)
    promised = weight_bytes(BaseManifest.read(tmp_path / "base").config, "float32") + largest
    assert 1.5 * promised < plain
    assert max(converting, loading) < promised


@pytest.mark.slow
def test_peak_memory_is_no_more_than_the_result_and_the_libraries(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", LARGE, None)
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in hf_tensors(read_hf_config(source)).items()}
    output = sum(tensor.size for tensor in tensors.values()) * np.dtype(np.float32).itemsize
    write_hf(source, LARGE, tensors, shards=2)
    del tensors
    peak = peak_of_conversion(source, tmp_path / "base")
    assert output > 800e6
    assert 100e6 < peak < output + 300e6
    assert BaseManifest.read(tmp_path / "base").config == read_hf_config(source)
