"""Adapters in few bits: what rounding changes is what the manifest says, and they are stored and written as any others.

Of the tiny model's matrices q has both widths a multiple of 32, k, v and the MLP one of them: B, or A, stays as it is.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from convert.merge import export_adapter
from openlora_jax.adapters.artifact import Tensor, artifact_digest, check_arrays, read_artifact, write_artifact
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.few_bits import AdapterFormat, Rounding, in_few_bits, in_numbers
from openlora_jax.adapters.host_cache import HostAdapter
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic, synthetic_manifest, synthetic_tensors
from openlora_jax.errors import BadCheckpoint
from tests.openlora_jax.tiny import DIGEST, MODEL

MODULES_USED = ("q_proj", "v_proj")
every_format = pytest.mark.parametrize("kind", ["int8", "int4", "auto"])


def exact(rank: int = 20, modules: tuple[str, ...] = MODULES_USED) -> tuple[Manifest, dict[str, Tensor]]:
    return synthetic_manifest(MODEL, DIGEST, modules, rank), synthetic_tensors(MODEL, modules, rank, seed=3)


def stored(kind: AdapterFormat = "int4", **rounding: Any) -> tuple[Manifest, dict[str, Tensor]]:
    return in_few_bits(*exact(), Rounding(kind, **rounding))


def delta(tensors: dict[str, Tensor], module: str, layer: int) -> Any:
    a, b = (tensors[f"{module}.{side}"][layer].reshape(32, -1).astype(np.float64) for side in "AB")
    return b.T @ a


@every_format
def test_the_manifest_says_what_rounding_changed(kind: AdapterFormat) -> None:
    manifest, tensors = stored(kind)
    packed = {"q_proj.A", "q_proj.B", "v_proj.A"}
    assert manifest.few_bits.keys() == packed | ({"v_proj.B"} if kind == "int8" else set())
    plain, found = in_numbers(manifest, tensors)
    before, whole = exact()
    assert (plain.dtype, plain.tensor_shapes) == ("float32", before.tensor_shapes)
    for module, size in manifest.modules.items():
        for layer in range(size.layers):
            for side, bits in (size.few_bits or {}).items():
                name = f"{module}.{side}"
                change = np.linalg.norm(found[name][layer] - whole[name][layer]) / np.linalg.norm(whole[name][layer])
                assert bits.errors[layer] == pytest.approx(change, rel=1e-2)
                assert change < (0.006 if kind == "int8" else 0.09)
            wanted, got = delta(whole, module, layer), delta(found, module, layer)
            assert size.delta_errors is not None
            change = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
            assert size.delta_errors[layer] == pytest.approx(change, rel=1e-2)
    assert not any(found[name][:, 1, 4:].any() for name in found)  # ranks beyond 20 stay zeros


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.54), ("int4", 0.3), ("auto", 0.3)])
def test_bytes_over_those_of_16_bits(kind: AdapterFormat, most: float) -> None:
    plain = in_few_bits(*exact(modules=("q_proj",)), Rounding("auto", most=0.0))[0]
    assert not plain.few_bits
    manifest, tensors = in_few_bits(*exact(modules=("q_proj",)), Rounding(kind))
    assert manifest.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert manifest.nbytes <= most * plain.nbytes


def test_auto_keeps_what_rounding_would_change_more() -> None:
    manifest, tensors = exact()
    tensors["q_proj.B"][1, :, :, ::32] *= 5.0  # so the others of each group are rounded to few levels
    manifest, tensors = in_few_bits(manifest, tensors, Rounding("auto"))
    assert set(manifest.few_bits) == {"q_proj.A", "v_proj.A"}
    assert tensors["q_proj.B"].dtype == ml_dtypes.bfloat16
    assert in_few_bits(*exact(), Rounding("auto", most=0.05))[0].few_bits == {}
    assert in_few_bits(*exact(), Rounding("auto", dtype="float32"))[1]["v_proj.B"].dtype == np.float32


def test_numbers_beyond_the_scales_are_refused() -> None:
    manifest, tensors = exact()
    tensors["v_proj.A"][0, 0, 2, 5] = 1e9
    with pytest.raises(ValueError, match=r"v_proj.A has numbers too large for the scales of int4"):
        in_few_bits(manifest, tensors, Rounding("int4"))
    assert "v_proj.A" not in in_few_bits(manifest, tensors, Rounding("auto"))[0].few_bits


@every_format
def test_what_is_written_is_read(tmp_path: Path, kind: AdapterFormat) -> None:
    manifest, tensors = stored(kind)
    write_artifact(tmp_path, manifest, tensors)
    check_arrays(tmp_path, manifest)
    artifact = read_artifact(tmp_path)
    assert artifact.manifest == manifest
    for name, tensor in tensors.items():
        assert artifact.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(artifact.tensors[name], tensor)
    assert artifact_digest(artifact.manifest, artifact.tensors) == artifact_digest(manifest, tensors)
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "tensors")
    np.testing.assert_array_equal(restored["q_proj.A.codes"], tensors["q_proj.A.codes"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "int3"}, "'int8' or 'int4'"),
        ({"format": "nf4"}, "'int8' or 'int4'"),
        ({"group": 48}, "should be 32"),
        ({"group": 64}, "should be 32"),
        ({"errors": [0.1]}, "an error of every layer"),
        ({"errors": [0.1, -1.0]}, "greater than or equal to 0"),
        ({"format": "int8"}, "has .* bytes where the manifest states"),
        ({"offset": 1}, "Extra inputs"),
    ],
)
def test_bits_that_there_are_not_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    write_artifact(tmp_path, *stored())
    fields = json.loads((tmp_path / "manifest.json").read_text())
    fields["modules"]["q_proj"]["few_bits"]["A"] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(BadCheckpoint, match=reason):
        read_artifact(tmp_path)


def test_widths_that_cannot_be_packed_are_refused() -> None:
    fields = stored()[0].to_fields()
    fields["modules"]["v_proj"]["few_bits"]["B"] = fields["modules"]["v_proj"]["few_bits"]["A"]
    with pytest.raises(ValueError, match="B: 16 columns are not a multiple of the 32 that int4 packs together"):
        Manifest.from_fields(fields)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_scales_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    manifest, tensors = stored()
    tensors["q_proj.B.scale"] = tensors["q_proj.B.scale"].copy()
    tensors["q_proj.B.scale"][1, 0, 3, 0] = value
    with pytest.raises(ValueError, match=r"q_proj\.B\.scale holds a scale that is not finite"):
        write_artifact(tmp_path, manifest, tensors)
    write_artifact(tmp_path, *stored())
    (tmp_path / "tensors" / "q_proj.B.scale" / "0.0.0.0").write_bytes(tensors["q_proj.B.scale"].tobytes())
    with pytest.raises(BadCheckpoint, match=r"q_proj\.B\.scale.*holds a scale that is not finite"):
        read_artifact(tmp_path)


def test_scales_of_another_shape_are_refused(tmp_path: Path) -> None:
    manifest, tensors = stored()
    with pytest.raises(ValueError, match="manifest states"):
        write_artifact(tmp_path, manifest, tensors | {"q_proj.A.scale": tensors["q_proj.A.scale"][..., :0]})


def test_stores_and_fetches_and_exports(tmp_path: Path) -> None:
    there, here = (AdapterStore.create(tmp_path / name) for name in ("there", "here"))
    digests = install_synthetic(there, MODEL, DIGEST, {"a": 1, "b": 2}, rank=3, few_bits=Rounding("int4"))
    assert there.verify() == dict.fromkeys(sorted(digests.values()))
    remote = RemoteStore(here, str(there.path), 1 << 20, Counters())
    try:
        manifest, tensors = remote.read(digests["b"])
    finally:
        remote.close()
    assert artifact_digest(manifest, tensors) == digests["b"]
    assert export_adapter(manifest, tensors, tmp_path / "out")["r"] == 3


@pytest.mark.parametrize("pinned", [False, True], ids=["as read", "pinned"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_format
def test_pages_are_numbers_once_they_are_written(
    kind: AdapterFormat, dtype: str, pinned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = AdapterPool.create(MODEL, dict.fromkeys(MODULES, 4), jnp.dtype(dtype))
    if pinned:  # a CPU's memories have the same names as a GPU's
        pool = AdapterPool(pool._shapes, pool.arrays, SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host"))
    pool.compile()
    manifest, tensors = stored(kind)
    staged = pool.stage({"q_proj": 2, "v_proj": 2}, tensors)
    assert HostAdapter({}, staged).nbytes == manifest.nbytes
    with jax.log_compiles():
        pool.write({"q_proj": (3, 1), "v_proj": (1, 2)}, staged)
    assert "Compiling" not in caplog.text
    wanted = in_numbers(manifest, tensors)[1]
    for module, pages in (("q_proj", [3, 1]), ("v_proj", [1, 2])):
        for side, part in zip("AB", pool.arrays[module], strict=True):
            np.testing.assert_array_equal(part[:, pages], wanted[f"{module}.{side}"].astype(jnp.dtype(dtype)))
    assert not np.any(pool.arrays["q_proj"][0][:, [0, 2]])
