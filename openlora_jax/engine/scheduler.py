"""Who runs in the next step: slots, KV blocks and work list items are given out, oldest request first.

Each schedule holds at most one chunk of known tokens (prompts, texts to score, recomputed output) and then one decode
step of every sequence whose known tokens are all dispatched, those of this very chunk included.

* Waiting sequences start in the order of their requests. A request starts with all its samples or not at all. Slots,
  KV blocks and items are strictly first come, first served; only who waits for an adapter is passed by others.
* Room for adapters on the device: others pass a request whose adapters find none, until it has waited `PATIENCE`
  seconds. From then on no newer request that names an adapter starts, so what runs now ends, its pages fall idle, and
  the request gets them. (A mix that cannot fit even then gets its error from the adapter cache.)
* A sequence gets the blocks of its known tokens when it starts, and one more whenever it grows into it. When none is
  left, the youngest running sample gives up slot and blocks and waits to be recomputed from its tokens. Texts to score
  do not grow, so they run to their end. A start leaves a free block for each running sequence to grow into.
* `n > 1`: the first sample computes the prompt. The others share its full blocks, copy the block of the last token
  once the prompt is dispatched, and compute the last tile again, each with its own sampler state.
* `deterministic`: a chunk holds one sequence's tokens, cut at multiples of a size that depends on its request alone; a
  sequence gets all the blocks that it can ever need when it starts, so none is ever recomputed.
"""

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from openlora_jax.config import EngineConfig
from openlora_jax.engine.kv_blocks import BlockPool, blocks_for
from openlora_jax.engine.plan import StepPlan, Tile
from openlora_jax.engine.sequence import Adapters, LiveRequest, Sequence
from openlora_jax.errors import InvalidRequest

PATIENCE = 1.0
"""Seconds for which others may pass a request that finds no room on the device for its adapters."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A plan to dispatch, and the sequence of each of its tiles."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """One iteration's device work, in the order of its fields.

    Attributes:
        refused: requests found to be too large, which must be ended.
        started: slots to prepare, each for the sequence that got it (and may have lost it again since).
        chunk: the chunk, if any tokens wait for one.
        copies: KV blocks to copy (source, target), after the chunk that filled the sources.
        decode: the decode step, if any sequence decodes.
    """

    refused: tuple[tuple[LiveRequest, InvalidRequest], ...]
    started: tuple[tuple[int, Sequence], ...]
    chunk: Launch | None
    copies: tuple[tuple[int, int], ...]
    decode: Launch | None

    def __bool__(self) -> bool:
        return bool(self.refused or self.chunk or self.decode)


class Scheduler:
    """Engine thread only. See the head of this file for its rules.

    The following conditions hold: a slot is free or belongs to one running sequence; a sequence is in `running`, in one
    party of `waiting`, or finished.

    Attributes:
        waiting: sequences to start together, oldest first.
        running: sequences with a slot, oldest first.
        preemptions: how many times a sequence had to give up its blocks.
    """

    def __init__(self, config: EngineConfig, adapters: Adapters) -> None:
        self._config = config
        self._adapters = adapters
        self.blocks = BlockPool(config.kv_blocks, config.kv_block)
        self.waiting: list[tuple[Sequence, ...]] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._slots = list(range(config.max_rows))
        self._items: Counter[str] = Counter()

    def add(self, live: LiveRequest) -> None:
        """A new request."""
        self._wait(tuple(live.sequences))

    def schedule(self, now: float) -> Schedule:
        """Decides one iteration. Its plans must be dispatched, in order, before the next call."""
        refused: list[tuple[LiveRequest, InvalidRequest]] = []
        started = self._start_waiting(now, refused)
        chunk = self._next_chunk()
        copies = self._release_forks()
        return Schedule(tuple(refused), started, chunk, copies, self._next_decode())

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees what it holds."""
        sequence.finished = True
        if sequence.slot is None:
            self.waiting = [party for party in self.waiting if sequence not in party]
        else:
            self._stop(sequence)

    def _start_waiting(
        self, now: float, refused: list[tuple[LiveRequest, InvalidRequest]]
    ) -> tuple[tuple[int, Sequence], ...]:
        started: list[Sequence] = []
        barred = False
        for party in list(self.waiting):
            live = party[0].request
            if live.ready is None or (barred and live.leases and live.pages is None):
                continue
            if any(sequence.in_flight for sequence in party) or not self._has_room(party):
                break
            if not self._place(live, now):
                barred = barred or (live.blocked is not None and now - live.blocked >= PATIENCE)
                continue
            if problem := self._misfit(live):
                refused.append((live, problem))
                continue
            if not self._has_items(live, len(party)):
                break
            self._start(party, now)
            started += party
        return tuple((sequence.row, sequence) for sequence in started)

    def _place(self, live: LiveRequest, now: float) -> bool:
        """Whether the request's adapters have their pages on the device, now if not before."""
        if live.pages is None:
            if not self._adapters.place(*live.leases):
                live.blocked = now if live.blocked is None else live.blocked
                return False
            live.hold_pages()
        return True

    def _has_room(self, party: tuple[Sequence, ...]) -> bool:
        """Whether slots and blocks suffice, with a block left for each running sequence to grow into."""
        shared = self._full_blocks(party[0]) * (len(party) - 1)
        needed = sum(map(self._starting_blocks, party)) - shared
        growth = 0 if self._config.deterministic else len(self.running)
        return len(party) <= len(self._slots) and needed + growth <= self.blocks.num_free

    def _starting_blocks(self, sequence: Sequence) -> int:
        return blocks_for(sequence.reach if self._config.deterministic else sequence.known, self.blocks.block_size)

    def _full_blocks(self, sequence: Sequence) -> int:
        """Blocks before the one of the prompt's last token: what the samples of a request share."""
        return (sequence.prompt_len - 1) // self.blocks.block_size

    def _misfit(self, live: LiveRequest) -> InvalidRequest | None:
        """Why a decode step's work list could not hold all samples of a mix even alone."""
        limit, samples = self._config.work_items, len(live.sequences)
        for module, pages in live.items.items():
            if pages * samples > limit:
                problem = f"its adapters have {pages} rank pages of {module}, {pages * samples} for n = {samples}"
                return InvalidRequest("mix", f"{problem}; a step takes at most {limit} (configuration work_items)")
        return None

    def _has_items(self, live: LiveRequest, rows: int) -> bool:
        """Whether a decode step's work list has room for so many rows of the mix beside all who run."""
        limit = self._config.work_items
        return all(self._items[module] + pages * rows <= limit for module, pages in live.items.items())

    def _start(self, party: tuple[Sequence, ...], now: float) -> None:
        self.waiting.remove(party)
        leader = party[0]
        for sequence in party:
            shared = [] if sequence is leader else leader.blocks[: self._full_blocks(leader)]
            own = self.blocks.allocate(self._starting_blocks(sequence) - len(shared))
            if own is None:
                raise RuntimeError("a sequence was started without room for its blocks")
            self.blocks.share(shared)
            sequence.blocks = shared + own
            sequence.slot = heapq.heappop(self._slots)
            sequence.leader = None if sequence is leader else leader
            self._items.update(sequence.request.items)
            insort(self.running, sequence, key=_age)
        live = leader.request
        live.started = now if live.started is None else live.started

    def _stop(self, sequence: Sequence) -> None:
        """Takes slot, blocks and items back from a running sequence."""
        self.running.remove(sequence)
        self.blocks.release(sequence.blocks)
        heapq.heappush(self._slots, sequence.row)
        self._items.subtract(sequence.request.items)
        sequence.slot, sequence.blocks = None, []

    def _wait(self, party: tuple[Sequence, ...]) -> None:
        insort(self.waiting, party, key=lambda other: _age(other[0]))

    def _next_chunk(self) -> Launch | None:
        launched: list[tuple[Tile, Sequence]] = []
        used: Counter[str] = Counter()
        for sequence in self.running:
            if not sequence.wants_chunk() or (launched and not self._may_share_chunk(sequence, launched[0][1])):
                continue
            for _ in range(self._tiles_left(sequence.request.items, used, len(launched))):
                launched.append((sequence.take_chunk_tile(self._config.prefill_tile), sequence))
                used.update(sequence.request.items)
                if not sequence.wants_chunk():
                    break
        return _launch("score" if launched and launched[0][1].params is None else "prefill", launched)

    def _may_share_chunk(self, sequence: Sequence, first: Sequence) -> bool:
        return not self._config.deterministic and (sequence.params is None) == (first.params is None)

    def _tiles_left(self, items: Mapping[str, int], used: Mapping[str, int], tiles: int) -> int:
        """Tiles of a mix with these items that a chunk can still take."""
        limit = self._config.work_items
        room = [(limit - used.get(module, 0)) // pages for module, pages in items.items() if pages]
        return min([self._config.prefill_chunk // self._config.prefill_tile - tiles, *room])

    def _release_forks(self) -> tuple[tuple[int, int], ...]:
        """Samples whose prompt was dispatched go on from its last tile, each in its own copy of that tile's block."""
        copies = []
        for fork in self.running:
            leader = fork.leader
            if leader is not None and leader.decoding:
                last = self._full_blocks(leader)
                copies.append((leader.blocks[last], fork.blocks[last]))
                fork.computed = leader.prompt_len - 1 - (leader.prompt_len - 1) % self._config.prefill_tile
                fork.leader = None
        return tuple(copies)

    def _next_decode(self) -> Launch | None:
        launched: list[tuple[Tile, Sequence]] = []
        for sequence in list(self.running):
            if sequence.wants_decode() and self._grow(sequence):
                launched.append((sequence.take_decode_tile(), sequence))
        return _launch("decode", launched)

    def _grow(self, sequence: Sequence) -> bool:
        """Sees to a block for the next position; False if the sequence itself had to give way."""
        while sequence.slot is not None and sequence.computed >= len(sequence.blocks) * self.blocks.block_size:
            block = self.blocks.allocate(1)
            if block is None:
                self._preempt(next(other for other in reversed(self.running) if other.params is not None))
            else:
                sequence.blocks += block
        return sequence.slot is not None

    def _preempt(self, sequence: Sequence) -> None:
        """Its tokens stay, those in flight are still read; then it is recomputed from its first position."""
        self._stop(sequence)
        sequence.computed, sequence.decoding, sequence.leader = 0, False, None
        self._wait((sequence,))
        self.preemptions += 1


def _age(sequence: Sequence) -> tuple[int, int]:
    return sequence.age


def _launch(kind: Literal["prefill", "decode", "score"], launched: list[tuple[Tile, Sequence]]) -> Launch | None:
    if not launched:
        return None
    return Launch(StepPlan(kind, tuple(tile for tile, _ in launched)), tuple(sequence for _, sequence in launched))
