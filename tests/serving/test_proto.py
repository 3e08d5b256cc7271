"""The committed stubs are those of the committed proto, and run on every supported protobuf and grpcio."""

import re
from pathlib import Path

import pytest

from openlora_jax.engine.sampling_params import SamplingParams
from serving.proto import openlora_pb2 as pb
from serving.proto.generate import ROOT, generate

PROTO = Path("serving/proto")


def code(path: Path) -> list[str]:
    """What a stub says, without what depends on the version of the compiler that wrote it."""
    text = path.read_text().replace("_Optional[bool]", "bool")
    if path.name.endswith("_grpc.py"):
        return re.findall(r"openlora__pb2\.\w+|'/openlora[^']*'", text)
    return [line for line in text.splitlines() if not re.search(r"Protobuf Python Version|^    \d+,$", line)]


def test_the_stubs_are_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="regenerating needs grpcio-tools")
    generate(tmp_path)
    for name in ("openlora_pb2.py", "openlora_pb2.pyi", "openlora_pb2_grpc.py"):
        assert code(tmp_path / PROTO / name) == code(ROOT / PROTO / name), "run python -m serving.proto.generate"


def test_the_stubs_run_on_the_oldest_supported_versions() -> None:
    stub = (ROOT / PROTO / "openlora_pb2.py").read_text()
    protobuf = tuple(map(int, re.findall(r"^    (\d+),$", stub, re.MULTILINE)))
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (ROOT / PROTO / "openlora_pb2_grpc.py").read_text())
    dependencies = (ROOT / "pyproject.toml").read_text()
    oldest = {name: tuple(map(int, low.split("."))) for name, low in re.findall(r'"([\w-]+)>=([\d.]+)', dependencies)}
    assert protobuf[0] == 6, "protobuf 7 runs stubs made for 6 or 7, and 6 only those made for 6"
    assert protobuf <= (*oldest["protobuf"], 0)
    assert grpcio is not None
    assert tuple(map(int, grpcio[1].split("."))) <= (*oldest["grpcio"], 0)


def test_the_sampling_message_is_the_librarys() -> None:
    fields = pb.SamplingParams.DESCRIPTOR.fields_by_name
    assert set(fields) == set(SamplingParams.model_fields)
    for field in fields.values():
        assert field.has_presence or field.is_repeated, f"{field.name}: absent must differ from zero"
