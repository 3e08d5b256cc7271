"""A request while it lives in the engine, and its sequences: what is known, what is computed, what is held."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.engine.adapters import Lease
from openlora_jax.engine.plan import Tile
from openlora_jax.engine.request import Ensemble, GenerateRequest, MixItem, ScoreRequest, Timings
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.stopping import Output
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import OpenLoraError


class Placed(NamedTuple):
    """An adapter of a mix, on the device.

    Attributes:
        begin: the position from which it acts; None if it never does.
    """

    digest: str
    pages: AdapterPages
    weight: float
    begin: int | None

    @classmethod
    def of(cls, lease: Lease, weight: float, prompt: Iterable[int]) -> "Placed":
        return cls(lease.digest, lease.pages, weight, lease.traits.begin(tuple(prompt)))


Rank = tuple[int, float, int]
"""A place among the running: class, higher ones negative, deadline, order of arrival."""


@dataclass(eq=False, slots=True)
class LiveRequest:
    """One request from admission to its last event.

    Attributes:
        order: of arrival; the smaller, the older.
        seed: of its samples.
        leases: one for each adapter of its mixes, in their order.
        mixes: of the rows that make one sample, the adapters, once all are on the device; None before.
        items: of each of these, pool -> pages, which are its work list items in one tile, at most.
        sequences: the rows of `n` samples, or the one text to score.
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
    mixes: "tuple[tuple[Placed, ...], ...] | None" = None
    items: "tuple[Counter[str], ...]" = ()
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
        leases = iter(self.leases)
        self.mixes = tuple(
            tuple(Placed.of(next(leases), item.weight, self.request.prompt_ids) for item in mix)
            for mix in self.request.mixes
        )
        self.items = tuple(map(_items, self.mixes))

    def give_pages_back(self) -> None:
        """Its leases were displaced."""
        self.mixes, self.items = None, ()

    @property
    def resident(self) -> bool:
        """Whether its adapters are on the device."""
        return self.mixes is not None or all(lease.resident for lease in self.leases)

    @property
    def num_running(self) -> int:
        """Rows that it has."""
        return sum(sequence.slot is not None for sequence in self.sequences)

    def served(self, output_weight: int) -> int:
        """Tokens that it has had, or has been promised, each output token counting `output_weight` times."""
        first = self.sequences[0]
        if first.params is None:
            return len(first.tokens)
        prompts = first.prompt_len * len(self.request.mixes)
        return prompts + output_weight * sum(sequence.num_output for sequence in self.sequences)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of its adapters, in the order of its mixes."""
        return tuple(lease.digest for lease in self.leases)

    @property
    def answerer(self) -> str:
        """Who answers, in words."""
        return " with ".join(map(_in_words, self.request.mixes))

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
        member: which of the request's mixes it runs with.
        gang: the rows of its sample, this one among them, which take every step from the first token on together: one,
            or one for each member of an ensemble, the first of which speaks for all.
        prompt_len: tokens of the prompt.
        decoding: its known tokens were dispatched, for an ensemble all but the last; it goes on token by token.
        leader: the sample whose prompt pass it waits for, to fork from; None when it computes its own.
        block_names: of the prompt's full blocks, for the prefix cache; made at the first start.
        finished: its last event was sent, or its request has ended.
        output: of a sample, with its gang's first row; None for a score.
        logprobs, greedy: of a score, per completion token so far.
    """

    request: LiveRequest
    index: int
    tokens: list[int]
    prompt_len: int
    sampling: RowSampling | None = None
    guarded: RowSampling | None = None
    output: Output | None = None
    member: int = 0
    gang: "tuple[Sequence, ...]" = ()
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
    ) -> "tuple[Sequence, ...]":
        """The rows of sample number `index`; `end_ids` are forbidden before `min_tokens`."""
        row = RowSampling.of(request.params, seed=live.seed, sample=index)
        guarded, prompt = row.forbidding(sorted(end_ids)), list(request.prompt_ids)
        gang = tuple(
            cls(live, index, list(prompt), len(prompt), row, guarded, None if member else output, member)
            for member in range(len(request.mixes))
        )
        for sequence in gang:
            sequence.gang = gang
        return gang

    def __post_init__(self) -> None:
        self.gang = (self,)

    @property
    def age(self) -> tuple[int, int, int]:
        """Sorts the older first."""
        return self.request.order, self.index, self.member

    @property
    def params(self) -> SamplingParams | None:
        request = self.request.request
        return request.params if isinstance(request, GenerateRequest) else None

    @property
    def ensemble(self) -> Ensemble | None:
        request = self.request.request
        return request.ensemble if isinstance(request, GenerateRequest) else None

    @property
    def mix(self) -> tuple[Placed, ...]:
        """Its own of the request's mixes, once they are on the device."""
        return self.request.mixes[self.member] if self.request.mixes else ()

    @property
    def items(self) -> Mapping[str, int]:
        """Work list items in one tile, by pool, once its adapters are on the device."""
        return self.request.items[self.member]

    @property
    def known(self) -> int:
        """Positions that a chunk can compute: a score's last token is only a target, an ensemble's is decoded."""
        return len(self.tokens) if self.params and not self.ensemble else len(self.tokens) - 1

    @property
    def reach(self) -> int:
        """Positions that will be computed at most: the last token that is sampled is not fed again."""
        return self.prompt_len + self.params.max_tokens - 1 if self.params else self.known

    @property
    def num_output(self) -> int:
        """Output tokens, the ones in flight included."""
        return len(self.tokens) - self.prompt_len + self.in_flight

    @property
    def place(self) -> tuple[Rank, int, int]:
        """Sorts the running: who goes first, and last who gives way first; a gang stays together."""
        return self.request.rank, self.index, self.member

    def start_over(self) -> None:
        """Nothing is computed any more. A sample's tokens stay; a text's scores are made again."""
        self.computed, self.decoding, self.leader = 0, False, None
        self.logprobs.clear()
        self.greedy.clear()

    def wants_chunk(self) -> bool:
        return not self.decoding and self.leader is None and self.computed < self.known

    def computed_to(self, position: int) -> None:
        """All before that position were dispatched, or found; a row of an ensemble may be ready to decode by that."""
        self.computed = position
        self.decoding = self.decoding or (self.ensemble is not None and self.leader is None and position >= self.known)

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
        end = self._same_mix(start, min(start - start % size + size, self.known))
        scored = self.params is None and end >= self.prompt_len
        self.in_flight += scored
        sampling = self.next_row() if end == self.known and not self.ensemble else None
        self.computed_to(end)
        if sampling:
            self.decoding = True
            self.in_flight += 1
        return Tile(
            slot=self.row,
            start=start,
            tokens=tuple(self.tokens[start:end]),
            blocks=tuple(self.blocks),
            pages=self._acting(start),
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
            pages=self._acting(self.computed),
            sampling=self.next_row(),
            ensemble=self.ensemble,
            member=self.member,
        )
        self.computed += 1
        self.in_flight += 1
        return tile

    def _acting(self, position: int) -> tuple[tuple[AdapterPages, float], ...]:
        """Pages and weight of each member of its mix that acts on the token at a position."""
        return tuple(
            (each.pages, each.weight) for each in self.mix if each.begin is not None and each.begin <= position
        )

    def _same_mix(self, start: int, end: int) -> int:
        """How far, to `end` at most, those that act on the token at `start` act alone."""
        return min([end, *(each.begin for each in self.mix if each.begin is not None and each.begin > start)])

    @property
    def row(self) -> int:
        """The slot of a running sequence."""
        if self.slot is None:
            raise RuntimeError("a sequence without a slot was scheduled")
        return self.slot


Party = tuple[Sequence, ...]
"""Sequences of one request that start together; of a gang all."""


def _items(mix: Iterable[Placed]) -> "Counter[str]":
    items = Counter[str]()
    for member in mix:
        items.update({pool: len(ids) for pool, ids in member.pages.items()})
    return items


def _in_words(mix: Iterable[MixItem]) -> str:
    return " + ".join(f"{item.weight:g} {item.adapter!r}" for item in mix) or "the base model"
