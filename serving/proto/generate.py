"""Writes the stubs of `openlora.proto` beside it: `python -m serving.proto.generate`.

Use grpcio-tools 1.80, the oldest release of the supported range: generated code refuses a protobuf or grpcio that is
older than the one it was made with, and serves one major version of protobuf beyond it (6.31 made: 6.33 and 7 run).
"""

import sys
from importlib import resources
from pathlib import Path

PROTO = "serving/proto/openlora.proto"
ROOT = Path(__file__).resolve().parents[2]


def generate(out: Path) -> None:
    """Writes `serving/proto/openlora_pb2.py`, `.pyi` and `openlora_pb2_grpc.py` under `out`.

    Raises:
        SystemExit: protoc refused the file; it has said why on stderr.
    """
    from grpc_tools import protoc  # a development tool, not a dependency

    well_known = resources.files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, PROTO])
    if status:
        sys.exit(status)


if __name__ == "__main__":
    generate(ROOT)
