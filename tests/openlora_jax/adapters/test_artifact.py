"""Artifacts: what is written is read, the digest tells all content apart, damage never becomes zeros or a crash."""

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from openlora_jax.adapters.artifact import (
    DTYPES,
    Tensor,
    artifact_digest,
    check_arrays,
    read_artifact,
    write_artifact,
)
from openlora_jax.adapters.manifest import LowRank, Manifest
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint


def write(folder: Path, manifest: Manifest, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    write_artifact(folder, manifest, tensors)


def read_and_check(folder: Path) -> None:
    check_arrays(folder, read_artifact(folder).manifest)


def example(dtype: Dtype = "float32", base: str = "0" * 64) -> tuple[Manifest, dict[str, Tensor]]:
    modules = {
        "v_proj": LowRank(layers=2, d_in=24, d_out=8, rank=20),
        "q_proj": LowRank(layers=2, d_in=24, d_out=24, rank=3),
    }
    manifest = Manifest(base_digest=base, dtype=dtype, modules=modules)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])
        for name, shape in manifest.tensor_shapes.items()
    }
    return manifest, tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: Dtype) -> None:
    manifest, tensors = example(dtype)
    tensors["v_proj.B"][:] = 0
    write(tmp_path / "x", manifest, tensors)
    check_arrays(tmp_path / "x", manifest)
    artifact = read_artifact(tmp_path / "x")
    found, read = artifact.manifest, artifact.tensors
    assert found == manifest
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert type(read[name]) is np.ndarray
        assert all(read[name][:, page].flags.c_contiguous for page in range(tensor.shape[1]))
        assert read[name].ctypes.data % 64 == 0
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)
    assert artifact_digest(found, read) == artifact_digest(manifest, tensors)
    shutil.rmtree(tmp_path / "x")
    np.testing.assert_array_equal(read["v_proj.A"], tensors["v_proj.A"])


def test_it_is_an_orbax_checkpoint(tmp_path: Path) -> None:
    manifest, tensors = example()
    write(tmp_path / "x", manifest, tensors)
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "x" / "tensors")
    np.testing.assert_array_equal(restored["q_proj.B"], tensors["q_proj.B"])


def test_the_manifest_counts_pages_and_bytes() -> None:
    manifest, tensors = example("bfloat16")
    assert manifest.pages == {"q_proj": 1, "v_proj": 2}
    assert list(manifest.pages) == ["q_proj", "v_proj"]
    assert manifest.tensor_shapes["v_proj.A"] == (2, 2, 16, 24)
    assert manifest.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_the_digest_is_fixed() -> None:
    """Stores outlive versions: a digest of today must be the digest of tomorrow."""
    manifest = Manifest(
        base_digest="0" * 64, dtype="float32", modules={"q_proj": LowRank(layers=1, d_in=2, d_out=3, rank=1)}
    )
    tensors = {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for name, shape in manifest.tensor_shapes.items()
    }
    assert artifact_digest(manifest, tensors) == "b17968441c9a835b560837ce2af52a0619d15198df9026b6b03352985e4cda25"


def test_the_digest_depends_on_all_content() -> None:
    manifest, tensors = example()
    digests = {
        artifact_digest(manifest, tensors),
        artifact_digest(*example("bfloat16")),
        artifact_digest(*example(base="1" * 64)),
    }
    for name in tensors:
        changed = {**tensors, name: tensors[name].copy()}
        changed[name].reshape(-1).view(np.uint8)[-1] ^= 1
        digests.add(artifact_digest(manifest, changed))
    swapped = {**tensors, "q_proj.A": tensors["q_proj.B"], "q_proj.B": tensors["q_proj.A"]}
    digests.add(artifact_digest(manifest, swapped))
    assert len(digests) == 3 + len(tensors) + 1
    assert artifact_digest(manifest, dict(reversed(tensors.items()))) == artifact_digest(manifest, tensors)


def test_tensors_that_are_not_what_the_manifest_states_are_refused(tmp_path: Path) -> None:
    manifest, tensors = example()
    wrong: list[dict[str, Tensor]] = [
        {},
        {**tensors, "k_proj.A": tensors["q_proj.A"]},
        {**tensors, "q_proj.A": tensors["q_proj.A"][:, :, :8]},
        {**tensors, "q_proj.A": tensors["q_proj.A"].astype(np.float64)},
    ]
    for case in wrong:
        with pytest.raises(ValueError, match="manifest states"):
            write_artifact(tmp_path, manifest, case)
        with pytest.raises(ValueError, match="manifest states"):
            artifact_digest(manifest, case)
    assert not list(tmp_path.iterdir())


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _module(**changes: object) -> dict[str, object]:
    return {"q_proj": {"layers": 2, "d_in": 24, "d_out": 24, "rank": 3, **changes}}


MANIFEST_DAMAGE = [
    {"format": 2},
    {"dtype": "float64"},
    {"base_digest": "../.."},
    {"extra": 1},
    {"modules": {}},
    {"modules": {"../q_proj": _module()["q_proj"]}},
    *({"modules": _module(**change)} for change in ({"rank": 0}, {"rank": 257}, {"rank": True}, {"rank": 3.0})),
    *({"modules": _module(**change)} for change in ({"d_in": 1 << 40}, {"layers": -1}, {"d_out": "24"}, {"x": 1})),
    {"modules": _module(d_in=25)},
    {"modules": _module(rank=17)},
    {"dtype": "bfloat16"},
]


@pytest.mark.parametrize("change", MANIFEST_DAMAGE, ids=str)
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write(tmp_path / "x", *example())
    _edit(tmp_path / "x" / "manifest.json", **change)
    with pytest.raises(BadCheckpoint, match=str(tmp_path / "x")):
        read_artifact(tmp_path / "x")


@pytest.mark.parametrize("file", ["manifest.json", "tensors/q_proj.A/.zarray", "tensors/q_proj.A/0.0.0.0"])
def test_a_missing_cut_or_linked_file_is_refused(tmp_path: Path, file: str) -> None:
    write(tmp_path / "x", *example())
    path = tmp_path / "x" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadCheckpoint):
        read_and_check(tmp_path / "x")
    path.unlink()
    with pytest.raises(BadCheckpoint):
        read_and_check(tmp_path / "x")
    path.mkdir()
    with pytest.raises(BadCheckpoint):
        read_and_check(tmp_path / "x")


def test_an_array_stored_otherwise_than_orbax_does_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", *example())
    path = tmp_path / "x" / "tensors" / "q_proj.A" / ".zarray"
    good = path.read_text()
    compressor = {"id": "zstd", "level": 1}
    for change in (
        {"shape": [1 << 20] * 4},
        {"chunks": [1, 1, 1, 1]},
        {"dtype": "<i4"},
        {"order": "F"},
        {"compressor": compressor},
    ):
        path.write_text(good)
        _edit(path, **change)
        with pytest.raises(BadCheckpoint, match="where orbax stores"):
            read_and_check(tmp_path / "x")
