"""Settings that cannot work are refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from openlora_jax.config import EngineConfig
from openlora_jax.errors import InvalidConfig


def test_programs_follow_the_maxima() -> None:
    assert EngineConfig().row_buckets == (1, 4, 16)
    assert EngineConfig(max_rows=3).row_buckets == (1, 3)
    assert EngineConfig(prefill_chunk=32).chunk_buckets == (32,)


def test_sizes_follow_the_tile() -> None:
    assert EngineConfig(prefill_tile=128).chunk_buckets == (128, 256)
    assert (EngineConfig().kv_block, EngineConfig(prefill_tile=128).kv_block) == (32, 128)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_rows": 0}, "max_rows"),
        ({"max_rows": 8, "row_buckets": (1, 16)}, "row_buckets"),
        ({"max_rows": 8, "row_buckets": (4, 1, 8)}, "row_buckets"),
        ({"prefill_chunk": 100}, "prefill_chunk"),
        ({"chunk_buckets": (64,)}, "chunk_buckets"),
        ({"chunk_buckets": (20, 256)}, "chunk_buckets"),
        ({"kv_block": 24}, "kv_block"),
        ({"prefill_tile": 48}, "prefill_tile"),
        ({"prefill_tile": 64, "kv_block": 32}, "kv_block"),
        ({"prefill_tile": 64, "chunk_buckets": (32, 256)}, "chunk_buckets"),
        ({"prefill_tile": 64, "prefill_chunk": 96}, "prefill_chunk"),
        ({"backend": "rocm"}, "backend"),
        ({"max_row": 8}, "max_row"),
    ],
)
def test_a_wrong_value_is_named(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        EngineConfig.of(settings)
    assert caught.value.key == key


def test_shipped_names_and_paths_are_read(tmp_path: Path) -> None:
    assert EngineConfig.load("cpu").backend == "cpu"
    own = tmp_path / "own.yaml"
    own.write_text("max_rows: 2\n")
    assert EngineConfig.load(str(own)).max_rows == 2


@pytest.mark.parametrize("text", ["- 1\n", "max_rows: [\n", "max_rows: many\n"])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(InvalidConfig):
        EngineConfig.load(str(own))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r"nowhere\.yaml"):
        EngineConfig.load("nowhere.yaml")
