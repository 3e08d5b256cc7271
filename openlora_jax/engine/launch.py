"""The device work of one iteration: a chunk of known tokens for who has some, a decode step for who has none."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from openlora_jax.config import EngineConfig
from openlora_jax.engine.plan import StepPlan, Tile
from openlora_jax.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Launch:
    """A plan to dispatch, and the sequence of each of its tiles."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]

    @classmethod
    def of(
        cls, kind: Literal["prefill", "decode", "score"], launched: Iterable[tuple[Tile, Sequence]]
    ) -> "Launch | None":
        """None where nothing is."""
        tiles, sequences = tuple(tile for tile, _ in launched), tuple(sequence for _, sequence in launched)
        return cls(StepPlan(kind, tiles), sequences) if tiles else None


def next_chunk(running: Iterable[Sequence], config: EngineConfig) -> Launch | None:
    """One chunk of the known tokens of `running`, in its order; they count as dispatched from now on.

    With `deterministic`, a chunk holds one sequence's tokens, cut at multiples of a size that depends on its request
    alone.
    """
    launched: list[tuple[Tile, Sequence]] = []
    used: Counter[str] = Counter()
    for sequence in running:
        if not sequence.wants_chunk() or (launched and not _may_share(config, sequence, launched[0][1])):
            continue
        for _ in range(_tiles_left(config, sequence.items, used, len(launched))):
            launched.append((sequence.take_chunk_tile(config.prefill_tile), sequence))
            used.update(sequence.items)
            if not sequence.wants_chunk():
                break
    return Launch.of("score" if launched and launched[0][1].params is None else "prefill", launched)


def _may_share(config: EngineConfig, sequence: Sequence, first: Sequence) -> bool:
    return not config.deterministic and (sequence.params is None) == (first.params is None)


def _tiles_left(config: EngineConfig, items: Mapping[str, int], used: Mapping[str, int], tiles: int) -> int:
    """Tiles of a mix with these items that a chunk can still take."""
    room = [(config.work_items - used.get(module, 0)) // pages for module, pages in items.items() if pages]
    return min([config.prefill_chunk // config.prefill_tile - tiles, *room])
