import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlora_jax.digest import content_digest

TENSORS: dict[str, NDArray[Any]] = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, np.float16)}


def test_the_digest_by_hand() -> None:
    parts = [
        b'{"x":1,"y":[2]}',
        b"a",
        b"float16[2]",
        b"\x00\x3c\x00\x3c",
        b"b",
        b"float32[2, 3]",
        np.arange(6, dtype="<f4").tobytes(),
    ]
    expected = hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()
    assert content_digest({"y": [2], "x": 1}, TENSORS) == expected


def test_layout_and_byte_order_do_not_matter() -> None:
    other = {"b": np.asfortranarray(TENSORS["b"]).astype(">f4"), "a": np.ones(4, np.float16)[::2]}
    assert content_digest({}, other) == content_digest({}, TENSORS)


def test_every_part_matters() -> None:
    changed = [
        content_digest({}, TENSORS),
        content_digest({"x": 1}, TENSORS),
        content_digest({}, {"b": TENSORS["b"]}),
        content_digest({}, {"c": TENSORS["b"], "a": TENSORS["a"]}),
        content_digest({}, {**TENSORS, "b": TENSORS["b"].reshape(3, 2)}),
        content_digest({}, {**TENSORS, "b": TENSORS["b"].view(np.int32)}),
        content_digest({}, {**TENSORS, "b": TENSORS["b"] + 1}),
    ]
    assert len(set(changed)) == len(changed)
