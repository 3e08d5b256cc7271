"""The content digest of a converted checkpoint or adapter: what it is called by, wherever the name does not matter."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ContentDigest:
    """SHA-256 of the canonical JSON of a description and, by sorted name, of each tensor's name, dtype, shape and
    little-endian bytes. Every part is preceded by its length, so that no two contents share an encoding.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._digest = hashlib.sha256()
        self._add(json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """Adds a tensor; the caller sees to the order of the names."""
        tensor = np.ascontiguousarray(tensor)
        tensor = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        self._add(name.encode())
        self._add(f"{tensor.dtype.name}{list(tensor.shape)}".encode())
        self._add(memoryview(tensor.reshape(-1).view(np.uint8)))

    def hex(self) -> str:
        return self._digest.hexdigest()

    def _add(self, part: bytes | memoryview) -> None:
        self._digest.update(len(part).to_bytes(8, "little"))
        self._digest.update(part)


def content_digest(description: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """The `ContentDigest` of tensors at hand, in hex."""
    digest = ContentDigest(description)
    for name in sorted(tensors):
        digest.add(name, tensors[name])
    return digest.hex()
