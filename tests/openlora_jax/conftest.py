from collections.abc import Iterator
from pathlib import Path

import chex
import pytest

from openlora_jax import LLM
from openlora_jax.engine.step import Program
from tests.openlora_jax.tiny import SETTINGS, write_tiny_base, write_tiny_store


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="session")
def tiny_llm(tiny_base: Path, tiny_store: Path) -> Iterator[LLM]:
    """Each of its programs is traced once, whatever the tests ask of it: a second time is an error."""
    with pytest.MonkeyPatch.context() as patch:
        for program in (Program.decode, Program.prefill, Program.score):
            patch.setattr(Program, program.__name__, chex.assert_max_traces(program, n=1))
        llm = LLM(tiny_base, tiny_store, **SETTINGS)
    with llm:
        yield llm
