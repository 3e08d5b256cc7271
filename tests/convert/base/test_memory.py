from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert.base.hf_config import read_hf_config
from openlora_jax.model.checkpoint import BaseManifest
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


@pytest.mark.slow
def test_peak_memory_is_little_more_than_the_result(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", LARGE, None)
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in hf_tensors(read_hf_config(source)).items()}
    output = sum(tensor.size for tensor in tensors.values()) * np.dtype(np.float32).itemsize
    write_hf(source, LARGE, tensors, shards=2)
    del tensors
    peak = peak_of_conversion(source, tmp_path / "base")
    assert output > 800e6
    assert output < peak < 1.3 * output + 500e6
    assert BaseManifest.read(tmp_path / "base").config == read_hf_config(source)
