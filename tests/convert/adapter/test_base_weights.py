"""What an adapter is converted against is what the base computes with, quantised or not."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.adapter import BaseWeights
from convert.base import convert_base
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.quantization.format import Format
from tests.parity.goldens import base_directory


@pytest.mark.parametrize(("quant", "bound"), [(None, 0.0), ("int8", 0.01), ("int4", 0.15)])
def test_products_and_biases_by_module_and_layer(tmp_path: Path, quant: Format | None, bound: float) -> None:
    source = base_directory("qwen2")
    convert_base(source, tmp_path / "base", "float32", lambda stage, done, total: None, quant)
    found = BaseWeights(tmp_path / "base", BaseManifest.read(tmp_path / "base"))
    tensors = {name: each for file in source.glob("*.safetensors") for name, each in load_file(file).items()}
    for module, name in (("k_proj", "self_attn.k_proj"), ("up_proj", "mlp.up_proj")):
        due = tensors[f"model.layers.1.{name}.weight"]
        assert np.abs(found.product(module, 1) - due).max() <= bound * np.abs(due).max()
    np.testing.assert_array_equal(found.bias("v_proj", 0), tensors["model.layers.0.self_attn.v_proj.bias"])
    assert found.bias("o_proj", 0) is None
    np.testing.assert_array_equal(found.product("lm_head", 0), found.product("embed_tokens", 0))
