"""The store of a fleet, made once: the next run with the same fleet finds it again."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.bench.long_tail.fleet import Fleet
from openlora_jax.digest import content_digest
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.progress import Progress

SLICE = 25
"""Adapters that are made together; who is interrupted loses no more than one slice a core."""


def install(fleet: Fleet, cache: Path, base: Path, progress: Progress) -> Path:
    """Where the store of these adapters is, beneath `cache`; what it lacks is made."""
    manifest = BaseManifest.read(base)
    recipe = {**asdict(fleet), "base": manifest.digest}
    store = AdapterStore.create(cache / f"synthetic-{content_digest(recipe, {})[:16]}")
    registered = store.registrations()
    slices = list(_slices(fleet, [index for index in range(fleet.count) if fleet.name(index) not in registered]))

    def make(part: Sequence[int]) -> None:
        seeds = {fleet.name(index): index for index in part}
        install_synthetic(
            store,
            manifest.config,
            manifest.digest,
            seeds,
            modules=fleet.modules,
            rank=fleet.rank(part[0]),
            dtype=fleet.dtype,
        )

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for done, _ in enumerate(threads.map(make, slices)):
            progress("making adapters", done + 1, len(slices))
    return store.path


def _slices(fleet: Fleet, indices: Sequence[int]) -> Iterator[list[int]]:
    """A few at a time, all of one rank."""
    for place in range(len(fleet.ranks)):
        left = (index for index in indices if index % len(fleet.ranks) == place)
        while part := list(islice(left, SLICE)):
            yield part
