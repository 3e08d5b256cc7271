"""Small bases and adapters, converted on first use and served through the public API."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.adapter import BaseWeights, convert_adapter
from convert.base import convert_base
from openlora_jax import LLM
from openlora_jax.adapters.few_bits import Rounding
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import EngineConfig
from openlora_jax.model.checkpoint import BaseManifest
from tests.parity.goldens import Goldens, Row, Scores

CONFIG = EngineConfig(
    max_rows=8,
    row_buckets=(8,),
    prefill_chunk=64,
    chunk_buckets=(64,),
    max_model_len=256,
    kv_block=16,
    kv_blocks=257,
    pool_pages=129,
    wide_pool_pages=17,
    vector_pages=9,
    saved_pages=3,
)
"""One program of each kind, and chunks and blocks short enough for the longest row to need several."""


class House:
    """Bases, one store, and an LLM a base; made once, kept until the tests end."""

    def __init__(self, root: Path, config: EngineConfig) -> None:
        self._root = root
        self._config = config
        self._store = AdapterStore.create(root / "store")
        self._llms: dict[Path, LLM] = {}

    def llm(self, base: Path) -> LLM:
        """The model converted from a Hugging Face directory, loaded."""
        if base not in self._llms:
            self._llms[base] = LLM(base=self._base(base), store=self._store.path, config=self._config)
        return self._llms[base]

    def install(
        self, name: str, adapter: Path, base: Path, initial: Path | None = None, few_bits: Rounding | None = None
    ) -> None:
        """Converts a PEFT directory for a base, under a name; `initial` is what it was before training."""
        if name not in self._store.registrations():
            path = self._base(base)
            manifest = BaseManifest.read(path)
            weights = BaseWeights(path, manifest)
            conversion = convert_adapter(adapter, manifest, weights=weights, initial=initial, few_bits=few_bits)
            self._store.install(name, conversion.manifest, conversion.tensors)

    def score(self, base: Path, rows: tuple[Row, ...], adapters: dict[str, float] | None = None) -> Scores:
        """The log-probabilities of all rows, each with the same mix."""
        scored = self.llm(base).score(
            [row.prompt_ids for row in rows], [row.completion_ids for row in rows], adapters=[adapters] * len(rows)
        )
        return [list(each.logprobs) for each in scored]

    def paths(self, base: Path) -> tuple[Path, Path]:
        """Where the converted base and the store are."""
        return self._base(base), self._store.path

    def close(self) -> None:
        for llm in self._llms.values():
            llm.close()

    def _base(self, source: Path) -> Path:
        converted = self._root / "bases" / source.name
        if not converted.exists():
            converted.parent.mkdir(exist_ok=True)
            convert_base(source, converted, dtype="float32", progress=lambda stage, done, total: None)
        return converted


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    built = House(tmp_path_factory.mktemp("house"), CONFIG)
    yield built
    built.close()


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens.load()
