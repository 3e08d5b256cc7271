"""The content digest of a converted checkpoint or adapter: what it is called by, wherever the name does not matter."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def content_digest(description: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256, in hex, of the canonical JSON of `description` and, by sorted name, of each tensor's name, dtype, shape
    and little-endian bytes. Every part is preceded by its length, so that no two contents share an encoding.
    """
    digest = hashlib.sha256()

    def add(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    add(json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        tensor = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        add(name.encode())
        add(f"{tensor.dtype.name}{list(tensor.shape)}".encode())
        add(memoryview(tensor.reshape(-1).view(np.uint8)))
    return digest.hexdigest()
