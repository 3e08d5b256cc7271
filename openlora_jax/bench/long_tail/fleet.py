"""The adapters that are registered: synthetic, of several ranks in turn, in a store that the next run finds again."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from openlora_jax.adapters.modules import PAGE_RANK
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.config import Dtype
from openlora_jax.digest import content_digest
from openlora_jax.errors import InvalidConfig
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.progress import Progress

SLICE = 25
"""Adapters that are made together; who is interrupted loses no more than one slice a core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Adapters numbered from 0, the most popular first.

    Attributes:
        count: of them.
        ranks: given to them in turn.
        modules: that each of them targets, on all layers.
        dtype: on disk and in host memory.
    """

    count: int
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: Dtype = "bfloat16"

    def rank(self, index: int) -> int:
        return self.ranks[index % len(self.ranks)]

    def name(self, index: int) -> str:
        return f"{index:05d}-r{self.rank(index)}"

    def residents(self, pages: int) -> int:
        """How many of the first fit so many rank pages of a module together, the same number of every rank.

        Raises:
            InvalidConfig: not even one of every rank.
        """
        turn = sum(-(-rank // PAGE_RANK) for rank in self.ranks)
        if pages < turn:
            raise InvalidConfig("pages", f"{pages} do not hold an adapter of each rank, which take {turn}")
        return min(pages // turn * len(self.ranks), self.count)

    def install(self, cache: Path, base: Path, progress: Progress) -> Path:
        """Where the store of these adapters is, beneath `cache`; what it lacks is made."""
        manifest = BaseManifest.read(base)
        recipe = {**asdict(self), "base": manifest.digest}
        store = AdapterStore.create(cache / f"synthetic-{content_digest(recipe, {})[:16]}")
        registered = store.registrations()
        slices = list(self._slices([index for index in range(self.count) if self.name(index) not in registered]))

        def make(part: Sequence[int]) -> None:
            seeds = {self.name(index): index for index in part}
            install_synthetic(
                store,
                manifest.config,
                manifest.digest,
                seeds,
                modules=self.modules,
                rank=self.rank(part[0]),
                dtype=self.dtype,
            )

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for done, _ in enumerate(threads.map(make, slices)):
                progress("making adapters", done + 1, len(slices))
        return store.path

    def _slices(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """A few at a time, all of one rank."""
        for place in range(len(self.ranks)):
            left = (index for index in indices if index % len(self.ranks) == place)
            while part := list(islice(left, SLICE)):
                yield part
