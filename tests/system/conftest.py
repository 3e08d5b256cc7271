"""Two engines for all tests here, one as it is served, which pages, and one that never has to; and the real base."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_jax import LLM
from tests.system.models import install, tiny_llm, write_tiny

NAMES = [f"adapter-{index}" for index in range(200)]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    path = tmp_path_factory.mktemp("system") / "store"
    install(path, base, NAMES)
    return path


@pytest.fixture(scope="session")
def names() -> list[str]:
    """The adapters of the store."""
    return NAMES


@pytest.fixture(scope="session")
def llm(base: Path, store: Path) -> Iterator[LLM]:
    """Device memory for eight adapters of the store, host memory for about twenty."""
    with tiny_llm(base, store, host_cache_bytes=1_000_000) as llm:
        yield llm


@pytest.fixture(scope="session")
def exact_llm(base: Path, store: Path, names: list[str]) -> Iterator[LLM]:
    """Deterministic, with device memory for every adapter of the store."""
    settings = {"max_rows": 16, "row_buckets": (16,), "pool_pages": len(names) + 9, "deterministic": True}
    with tiny_llm(base, store, **settings) as llm:
        yield llm


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, converted."""
    base = Path(os.environ.get("OPENLORA_SMOLLM2_BASE", ".cache/base/smollm2-135m-instruct"))
    if not base.exists():
        pytest.skip(f"{base} is not there: `make base` makes it, or set OPENLORA_SMOLLM2_BASE")
    return base
