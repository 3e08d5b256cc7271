from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_jax import LLM
from tests.openlora_jax.tiny import SETTINGS, write_tiny_base, write_tiny_store


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="session")
def tiny_llm(tiny_base: Path, tiny_store: Path) -> Iterator[LLM]:
    with LLM(tiny_base, tiny_store, **SETTINGS) as llm:
        yield llm
