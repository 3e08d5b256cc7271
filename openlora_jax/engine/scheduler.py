"""Who runs in the next step: slots, KV blocks, adapter pages and work list items are given out, in the policy's order.

Each schedule holds at most one chunk of known tokens (prompts, texts to score, recomputed output) and then one decode
step of every sequence whose known tokens are all dispatched, those of this very chunk included.

* Waiting sequences start in the order of the policy. A request starts with all its samples or not at all. For slots, KV
  blocks and items nobody passes the first in that order; only who waits for an adapter is passed by others, be it
  one that was there and has left both device and host memory since.
* Room for adapters on the device: others pass a request whose adapters find none, until it has waited `PATIENCE`
  seconds. From then on nobody after it that names an adapter starts, so what runs now ends, its pages fall idle, and
  the request gets them. While it lacks only pages of adapters that others wait for and that have not had their
  `min_residency` there, those others may still start, but no absent adapter comes.
  (A mix that cannot fit even then gets its error from the adapter cache.)
* Who lacks any of these takes it from requests of a lower class, if that is enough to start: first the pages of those
  that wait themselves, then all that the last of the running hold. Who gave way is recomputed from its tokens.
* A sequence gets the blocks of its known tokens when it starts, and one more whenever it grows into it. When none is
  left, the last of the running samples gives way. Texts to score do not grow, and make room for their class only. A
  start leaves a free block for each running sequence to grow into.
* `n > 1`: the first sample computes the prompt. The others share its full blocks, copy the block of the last token
  once the prompt is dispatched, and compute the last tile again, each with its own sampler state.
* An ensemble's members are rows of their own: they start together, prefill all but the last token each on its own, and
  then take every step together, as all of them have to grow, or to give way, if one has to (a gang).
* A prompt begins with the blocks of those before it, of the same tenant and mix, that began with the same tokens.
* `deterministic`: no block is taken over from another request, a sequence gets all that it can ever need when it
  starts, and who has sampled a token gives way to nobody, as other programs would recompute its output.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from openlora_jax.config import EngineConfig
from openlora_jax.engine.adapters import Adapters
from openlora_jax.engine.launch import Launch, next_chunk
from openlora_jax.engine.plan import Tile
from openlora_jax.engine.policy import PATIENCE, policy_of
from openlora_jax.engine.room import Room
from openlora_jax.engine.sequence import LiveRequest, Party, Rank, Sequence
from openlora_jax.errors import InvalidRequest


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
        running: sequences with a slot, the first to be served first and the first to give way last.
        room: what they hold.
        preemptions: how many times a sequence had to give way.
    """

    def __init__(self, config: EngineConfig, adapters: Adapters) -> None:
        self._config = config
        self._adapters = adapters
        self._policy = policy_of(config)
        self.room = Room(config)
        self.blocks = self.room.blocks
        self.waiting: list[Party] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._highest: int | None = None  # level that waits, while it is known

    def add(self, live: LiveRequest) -> None:
        """A new request."""
        self._policy.arrives(live)
        self._wait(tuple(live.sequences))

    def level(self, live: LiveRequest) -> int:
        """The class of a request that has not ended, the higher the more urgent."""
        return self._policy.level(live)

    def ahead(self, live: LiveRequest) -> int:
        """Requests that must end before a waiting one can start, if no more come."""
        level = self.level(live)
        if self.room.slots or (self.running and _level(self.running[-1].request) < level):
            return 0
        before = {party[0].request for party in self.waiting if self.level(party[0].request) >= level}
        return len(before | {live})

    def remove(self, live: LiveRequest) -> None:
        """A request that has ended: frees whatever its sequences hold."""
        for sequence in live.sequences:
            if not sequence.finished:
                self.finish(sequence)
        self._policy.leaves(live)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out with its gang, wherever it is, and frees what they hold."""
        for row in sequence.gang:
            row.finished = True
            if row.slot is not None:
                self._stop(row)
        if any(sequence in party for party in self.waiting):
            self.waiting = [party for party in self.waiting if sequence not in party]
            self._highest = None

    def forget(self) -> None:
        """What was in KV blocks and pages is lost, while nobody runs."""
        self.blocks.forget()
        for party in self.waiting:
            self._give_pages_back(party[0].request)

    def schedule(self, now: float) -> Schedule:
        """Decides one iteration. Its plans must be dispatched, in order, before the next call."""
        refused: list[tuple[LiveRequest, InvalidRequest]] = []
        started = self._start_waiting(now, refused) if self._may_start() else ()
        chunk = next_chunk(self.running, self._config)
        for sequence in dict.fromkeys(chunk.sequences if chunk else ()):
            self.room.name_blocks(sequence)
        copies = self._release_forks()
        return Schedule(tuple(refused), started, chunk, copies, self._next_decode(now))

    def _may_start(self) -> bool:
        """Whether a slot is free, or may be taken from the last of the running."""
        if not self.waiting or self.room.slots:
            return bool(self.waiting)
        if self._highest is None:
            self._highest = max(self.level(party[0].request) for party in self.waiting)
        return self._highest > _level(self.running[-1].request)

    def _start_waiting(
        self, now: float, refused: list[tuple[LiveRequest, InvalidRequest]]
    ) -> tuple[tuple[int, Sequence], ...]:
        started: list[tuple[int, Sequence]] = []
        barred = reserved = False
        for party in self._policy.order(self.waiting, now):
            live = party[0].request
            if live.leases and live.mixes is None and (barred or (reserved and not live.resident)):
                continue
            if any(sequence.in_flight for sequence in party):
                break
            if not self._make_room(party, now):
                if not all(lease.ready for lease in live.leases):
                    continue
                if not self.room.fits(party, len(self.running)):
                    break
                live.blocked = now if live.blocked is None else live.blocked
                if now - live.blocked >= PATIENCE:
                    reserved, barred = True, barred or not self._adapters.fits(live.leases, ())
                continue
            if problem := self.room.misfit(live):
                refused.append((live, problem))
                continue
            if not self._make_items(party, now):
                break
            self._start(party, now)
            started += ((sequence.row, sequence) for sequence in party)
        return tuple(started)

    def _make_room(self, party: Party, now: float) -> bool:
        """Whether there are slots and blocks for a party, and pages for its adapters, now if not before."""
        live, running = party[0].request, len(self.running)

        def enough(others: list[LiveRequest]) -> bool:
            leases = [lease for other in others for lease in other.leases]
            pages = live.mixes is not None or self._adapters.fits(live.leases, leases)
            return pages and self.room.fits(party, running, _rows(others))

        if self.room.fits(party, running) and self._place(live, urgent=self._policy.urgent(live)):
            return True
        return self._displace(live, now, enough) and self._place(live, urgent=True)

    def _place(self, live: LiveRequest, *, urgent: bool) -> bool:
        """Whether the request's adapters have their pages on the device, now if not before."""
        if live.mixes is None:
            if not self._adapters.place(*live.leases, urgent=urgent):
                return False
            live.hold_pages()
        return True

    def _make_items(self, party: Party, now: float) -> bool:
        """Whether the work list has room for a party, now if not before."""
        if self.room.has_items(party):
            return True
        return self._displace(party[0].request, now, lambda others: self.room.has_items(party, _rows(others)))

    def _displace(self, live: LiveRequest, now: float, enough: Callable[[list[LiveRequest]], bool]) -> bool:
        """Has requests of lower classes give way, no more than are enough; False, and none, if all are not."""
        others: list[LiveRequest] = []
        for other in self._displaceable(live):
            others.append(other)
            if enough(others):
                break
        else:
            return False
        for other in list(others):  # the last in rank first, as some hold nothing of what is lacking
            rest = [each for each in others if each is not other]
            others = rest if enough(rest) else others
        for other in others:
            self._suspend(other, now)
        return True

    def _displaceable(self, live: LiveRequest) -> Iterator[LiveRequest]:
        """Who may have to give way to a request: who waits with pages, then who runs, the last in rank first."""
        level = self.level(live)
        for party in reversed(self.waiting):
            other = party[0].request
            if other.mixes is not None and not other.num_running and self.level(other) < level:
                yield other
        for other in dict.fromkeys(sequence.request for sequence in reversed(self.running)):
            if _level(other) < level and self._may_start_over(other):
                yield other

    def _may_start_over(self, live: LiveRequest) -> bool:
        samples = (sequence for sequence in live.sequences if sequence.params is not None)
        return not (self._config.deterministic and any(sample.num_output for sample in samples))

    def _suspend(self, live: LiveRequest, now: float) -> None:
        """It waits again, without rows, blocks and pages; whole, as it came, if it has no token yet."""
        rows = [sequence for sequence in live.sequences if sequence.slot is not None]
        for sequence in rows:
            self._stop(sequence)
            sequence.start_over()
            self.preemptions += 1
        live.waiting_since = now if rows else live.waiting_since
        whole = len(rows) == len(live.sequences) and not any(sequence.num_output for sequence in rows)
        for party in [tuple(rows)] if whole else dict.fromkeys(sequence.gang for sequence in rows):
            self._wait(party)
        self._give_pages_back(live)

    def _give_pages_back(self, live: LiveRequest) -> None:
        if live.mixes is not None:
            self._adapters.displace(*live.leases)
            live.give_pages_back()

    def _start(self, party: Party, now: float) -> None:
        self.waiting.remove(party)
        self._highest = None
        live = party[0].request
        live.rank = self._policy.starts(live)
        self.room.take(party)
        for sequence in party:
            insort(self.running, sequence, key=_place)
        live.start(now)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.room.give_back(sequence)

    def _wait(self, party: Party) -> None:
        insort(self.waiting, party, key=_age)
        if self._highest is not None:
            self._highest = max(self._highest, self.level(party[0].request))

    def _release_forks(self) -> tuple[tuple[int, int], ...]:
        """Samples whose prompt was dispatched go on from its last tile, each in its own copy of that tile's block."""
        copies = []
        for fork in self.running:
            leader = fork.leader
            if leader is not None and leader.decoding:
                last = self.room.full_blocks(leader)
                if leader.computed > last * self.blocks.block_size:
                    copies.append((leader.blocks[last], fork.blocks[last]))
                fork.leader = None
                fork.computed_to(leader.prompt_len - 1 - (leader.prompt_len - 1) % self._config.prefill_tile)
        return tuple(copies)

    def _next_decode(self, now: float) -> Launch | None:
        launched: list[tuple[Tile, Sequence]] = []
        for gang in dict.fromkeys(sequence.gang for sequence in self.running):
            if all(row.wants_decode() for row in gang) and all(self._grow(row, now) for row in gang):
                launched += ((row.take_decode_tile(), row) for row in gang)
        return Launch.of("decode", launched)

    def _grow(self, sequence: Sequence, now: float) -> bool:
        """Sees to a block for the next position; False if the sequence itself had to give way."""
        while sequence.slot is not None and sequence.computed >= len(sequence.blocks) * self.blocks.block_size:
            block = self.blocks.allocate(1)
            if block is None:
                self._preempt(next(other for other in reversed(self.running) if _may_yield(other, sequence)), now)
            else:
                sequence.blocks += block
        return sequence.slot is not None

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Its gang's tokens stay, those in flight are still read; then it is recomputed from its first position."""
        for row in sequence.gang:
            self._stop(row)
            row.start_over()
        sequence.request.waiting_since = now
        self._wait(sequence.gang)
        self.preemptions += len(sequence.gang)


def _may_yield(other: Sequence, growing: Sequence) -> bool:
    return other.params is not None or _level(other.request) < _level(growing.request)


def _level(live: LiveRequest) -> int:
    """That a running request has, of its class or by its age."""
    return -live.rank[0]


def _rows(lives: Iterable[LiveRequest]) -> list[Sequence]:
    return [sequence for live in lives for sequence in live.sequences if sequence.slot is not None]


def _place(sequence: Sequence) -> tuple[Rank, int, int]:
    return sequence.place


def _age(party: Party) -> tuple[int, int, int]:
    return party[0].age
