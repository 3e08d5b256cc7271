"""A request while it lives in the engine, and its sequences: what is known, what is computed, what is held."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.adapters.traits import Traits
from openlora_jax.engine.plan import Tile
from openlora_jax.engine.request import GenerateRequest, ScoreRequest, Timings
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.stopping import Output
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import OpenLoraError


@runtime_checkable
class Lease(Protocol):
    """A hold on one adapter, from admission to the request's end.

    Attributes:
        digest: of the adapter's content.
        pages: where it is on the device; valid once it was placed.
        traits: how it acts; valid once it was placed.
        ready: it is in host memory or on the device.
        resident: it is on the device.
        error: why it cannot be served; None while it loads and when it is ready.
    """

    @property
    def digest(self) -> str: ...
    @property
    def pages(self) -> AdapterPages: ...
    @property
    def traits(self) -> Traits: ...
    @property
    def ready(self) -> bool: ...
    @property
    def resident(self) -> bool: ...
    @property
    def error(self) -> OpenLoraError | None: ...
    def release(self) -> None:
        """Gives the adapter up. Any thread, any number of times."""


@runtime_checkable
class Adapters(Protocol):
    """The adapter cache, as the engine sees it; it calls `on_ready` with a digest whose load has ended."""

    on_ready: Callable[[str], None]

    def acquire(self, *adapters: tuple[str, str]) -> list[Any]:
        """A lease on each adapter of one request, given by name and digest; starts their loads. Any thread."""

    def place(self, *leases: Any, urgent: bool = False) -> bool:
        """Brings the pages of one request's adapters to the device, all or none; False if there is no room now.

        Unless it is urgent, what others wait for keeps its place for some time.

        Engine thread only. Takes what `acquire` returned; a protocol cannot say so without a type parameter.
        """

    def fits(self, leases: Iterable[Any], without: Iterable[Any]) -> bool:
        """Whether an urgent `place` would find room for one request's leases, if these others were displaced."""

    def prefetch(self) -> bool:
        """Brings what will probably be asked for closer to the device. Engine thread only, when it has no work.

        Returns:
            Whether there may be more of this to do at once.
        """

    def displace(self, *leases: Any) -> None:
        """Takes the device's pages back from placed leases, which wait from now on. Engine thread only."""

    def reset(self) -> None:
        """All that was on the device is lost, while no lease is placed: whoever waits for it waits for it anew.

        Engine thread only.
        """


Rank = tuple[int, float, int]
"""A place among the running: class, higher ones negative, deadline, order of arrival."""


@dataclass(eq=False, slots=True)
class LiveRequest:
    """One request from admission to its last event.

    Attributes:
        order: of arrival; the smaller, the older.
        seed: of its samples.
        leases: one for each member of the mix, in its order.
        pages: pages and weight of each member, once all are on the device; None before.
        begins: the position from which each member acts, once all were on the device; None where one never does.
        items: pool -> pages of the whole mix, which is its work list items in one tile, at most.
        sequences: `n` samples, or the one text to score.
        submitted, ready, started, answered: monotonic seconds of the submission, the adapters in host memory, the
            start, and the first result.
        blocked: since when it finds no room for its adapters on the device; None while it runs or has not asked.
        room: seconds for which it found none, until it started.
        waiting_since: the submission, or when it last gave way.
        rank: its place among the running, when it has started.
    """

    request: GenerateRequest | ScoreRequest
    stream: EventStream
    submitted: float
    order: int = 0
    seed: int = 0
    leases: list[Lease] = field(default_factory=list)
    sequences: "list[Sequence]" = field(default_factory=list)
    pages: tuple[tuple[AdapterPages, float], ...] | None = None
    begins: tuple[int | None, ...] = ()
    items: "Counter[str]" = field(default_factory=Counter)
    ready: float | None = None
    started: float | None = None
    answered: float | None = None
    blocked: float | None = None
    room: float = 0.0
    waiting_since: float = 0.0
    rank: Rank = (0, 0.0, 0)

    def __post_init__(self) -> None:
        self.waiting_since = self.submitted

    def start(self, now: float) -> None:
        """It runs, for the first time or again."""
        if self.started is None:
            self.started, self.room = now, self._blocked_for(now)
        self.blocked = None

    def hold_pages(self) -> None:
        """Its leases were placed: notes where the pages are, and from where on they act."""
        weights = (item.weight for item in self.request.mix)
        self.pages = tuple((lease.pages, weight) for lease, weight in zip(self.leases, weights, strict=True))
        self.begins = tuple(lease.traits.begin(self.request.prompt_ids) for lease in self.leases)
        for pages, _ in self.pages:
            self.items.update({pool: len(ids) for pool, ids in pages.items()})

    def give_pages_back(self) -> None:
        """Its leases were displaced."""
        self.pages = None
        self.items.clear()

    def acting(self, position: int) -> tuple[tuple[AdapterPages, float], ...]:
        """Pages and weight of each member that acts on the token at a position."""
        members = zip(self.pages or (), self.begins, strict=True)
        return tuple(member for member, begin in members if begin is not None and begin <= position)

    def same_mix(self, start: int, end: int) -> int:
        """How far, to `end` at most, those that act on the token at `start` act alone."""
        return min([end, *(begin for begin in self.begins if begin is not None and begin > start)])

    @property
    def resident(self) -> bool:
        """Whether its adapters are on the device."""
        return self.pages is not None or all(lease.resident for lease in self.leases)

    @property
    def num_running(self) -> int:
        """Rows that it has."""
        return sum(sequence.slot is not None for sequence in self.sequences)

    def served(self, output_weight: int) -> int:
        """Tokens that it has had, or has been promised, each output token counting `output_weight` times."""
        first = self.sequences[0]
        if first.params is None:
            return len(first.tokens)
        return first.prompt_len + output_weight * sum(sequence.num_output for sequence in self.sequences)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the mix's members, in its order."""
        return tuple(lease.digest for lease in self.leases)

    @property
    def answerer(self) -> str:
        """Who answers, in words."""
        return " + ".join(f"{item.weight:g} {item.adapter!r}" for item in self.request.mix) or "the base model"

    @property
    def load_error(self) -> OpenLoraError | None:
        return next((lease.error for lease in self.leases if lease.error is not None), None)

    @property
    def phase(self) -> str:
        """Where it is, in words."""
        if self.answered is not None:
            return "decode"
        if self.started is not None:
            return "prefill"
        return "adapter load" if self.ready is None else "queue"

    def timings(self, now: float) -> Timings:
        """Where the time went."""
        marks = [self.submitted]
        for mark in (self.ready, self.started, self.answered, now):
            marks.append(max(marks[-1], now if mark is None else mark))
        load, queue, prefill, decode = (after - before for before, after in pairwise(marks))
        room = self._blocked_for(now) if self.started is None else self.room
        return Timings(queue=queue, load=load, prefill=prefill, decode=decode, room=room)

    def _blocked_for(self, now: float) -> float:
        return 0.0 if self.blocked is None else now - self.blocked


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample of a request, or the text to score.

    The following conditions hold. `tokens` are the ids that the host knows: prompt and read output, or prompt and
    completion. `computed` positions were dispatched; `in_flight` sampled tokens, or scored tiles, were dispatched but
    not read. A running sequence has a slot and blocks for what is computed; a waiting one has neither.

    Attributes:
        index: which sample.
        prompt_len: tokens of the prompt.
        decoding: its known tokens were dispatched; it goes on token by token.
        leader: the sample whose prompt pass it waits for, to fork from; None when it computes its own.
        block_names: of the prompt's full blocks, for the prefix cache; made at the first start.
        finished: its last event was sent, or its request has ended.
        output: of a sample; None for a score.
        logprobs, greedy: of a score, per completion token so far.
    """

    request: LiveRequest
    index: int
    tokens: list[int]
    prompt_len: int
    sampling: RowSampling | None = None
    guarded: RowSampling | None = None
    output: Output | None = None
    logprobs: list[float] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    in_flight: int = 0
    decoding: bool = False
    leader: "Sequence | None" = None
    finished: bool = False
    block_names: tuple[bytes, ...] = ()

    @classmethod
    def to_score(cls, live: LiveRequest, request: ScoreRequest) -> "Sequence":
        return cls(live, 0, [*request.prompt_ids, *request.completion_ids], len(request.prompt_ids))

    @classmethod
    def sample(
        cls, live: LiveRequest, request: GenerateRequest, index: int, end_ids: Iterable[int], output: Output
    ) -> "Sequence":
        """Sample number `index`; `end_ids` are forbidden before `min_tokens`."""
        row = RowSampling.of(request.params, seed=live.seed, sample=index)
        prompt = list(request.prompt_ids)
        return cls(live, index, prompt, len(prompt), row, row.forbidding(sorted(end_ids)), output)

    @property
    def age(self) -> tuple[int, int]:
        """Sorts the older first."""
        return self.request.order, self.index

    @property
    def params(self) -> SamplingParams | None:
        request = self.request.request
        return request.params if isinstance(request, GenerateRequest) else None

    @property
    def known(self) -> int:
        """Positions that a chunk can compute: a score's last token is only a target."""
        return len(self.tokens) if self.params else len(self.tokens) - 1

    @property
    def reach(self) -> int:
        """Positions that will be computed at most: the last token that is sampled is not fed again."""
        return self.prompt_len + self.params.max_tokens - 1 if self.params else self.known

    @property
    def num_output(self) -> int:
        """Output tokens, the ones in flight included."""
        return len(self.tokens) - self.prompt_len + self.in_flight

    @property
    def place(self) -> tuple[Rank, int]:
        """Sorts the running: who goes first, and last who gives way first."""
        return self.request.rank, self.index

    def start_over(self) -> None:
        """Nothing is computed any more. A sample's tokens stay; a text's scores are made again."""
        self.computed, self.decoding, self.leader = 0, False, None
        self.logprobs.clear()
        self.greedy.clear()

    def wants_chunk(self) -> bool:
        return not self.decoding and self.leader is None and self.computed < self.known

    def wants_decode(self) -> bool:
        return self.decoding and self.params is not None and self.num_output < self.params.max_tokens

    def next_row(self) -> RowSampling | None:
        """How the next token is sampled."""
        forbidden = self.params is not None and self.num_output < self.params.min_tokens
        return self.guarded if forbidden else self.sampling

    def take_chunk_tile(self, size: int) -> Tile:
        """The next tile of known tokens, `size` at most, which counts as dispatched from now on.

        It ends before a multiple of `size`, so within one KV block, and where another member of the mix begins to act.
        """
        start = self.computed
        end = self.request.same_mix(start, min(start - start % size + size, self.known))
        scored = self.params is None and end >= self.prompt_len
        self.in_flight += scored
        sampling = self.next_row() if end == self.known else None
        self.computed = end
        if sampling:
            self.decoding = True
            self.in_flight += 1
        return Tile(
            slot=self.row,
            start=start,
            tokens=tuple(self.tokens[start:end]),
            blocks=tuple(self.blocks),
            pages=self.request.acting(start),
            sampling=sampling,
            targets=tuple(self.tokens[start + 1 : end + 1]) if scored else None,
        )

    def take_decode_tile(self) -> Tile:
        """The token last sampled, wherever it is now; it counts as dispatched from now on."""
        tile = Tile(
            slot=self.row,
            start=self.computed,
            tokens=None,
            blocks=tuple(self.blocks),
            pages=self.request.acting(self.computed),
            sampling=self.next_row(),
        )
        self.computed += 1
        self.in_flight += 1
        return tile

    @property
    def row(self) -> int:
        """The slot of a running sequence."""
        if self.slot is None:
            raise RuntimeError("a sequence without a slot was scheduled")
        return self.slot


Party = tuple[Sequence, ...]
"""Sequences of one request that start together."""
