"""An engine's surroundings whose answers can be worked out by hand.

The fake device has real KV blocks: a tile writes (position, token, mix) for each of its tokens into the blocks that it
was given, then reads every earlier position of its sequence back through the same blocks. A wrong block table, a block
that somebody else wrote, a wrong position, slot or adapter page give a wrong token or raise. `answers` has the tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openlora_jax.adapters.mixes import Member
from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.traits import PLAIN, Traits
from openlora_jax.config import EngineConfig
from openlora_jax.engine.engine import Engine
from openlora_jax.engine.plan import RowOutput, StepPlan, Tile, TileScores
from openlora_jax.engine.request import (
    Ensemble,
    GenerateRequest,
    MixItem,
    ScoreRequest,
    TokenLogprobs,
)
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import AdapterUnavailable, OpenLoraError, UnknownAdapter
from tests.openlora_jax.engine.answers import EOS, VOCAB, joint_token, mix_value, next_token, score, text_of

MODULE = MODULES[0]


class LetterDetokenizer:
    """Text comes a letter late, as if each token's last character were completed by the next."""

    def __init__(self) -> None:
        self._late = ""

    def push(self, token_id: int) -> str:
        text = self._late + text_of([token_id])
        self._late = text[-1]
        return text[:-1]

    def flush(self) -> str:
        late, self._late = self._late, ""
        return late


class LetterTokenizer:
    def stream(self) -> LetterDetokenizer:
        return LetterDetokenizer()


class FakeStore:
    """Adapter number k has the name `a<k>` and the digest `d<k>`."""

    def members(self, name: str) -> tuple[Member, ...]:
        if not name.startswith("a"):
            raise UnknownAdapter(name)
        return (Member(name, "d" + name[1:], 1.0),)


@dataclass(eq=False)
class FakeLease:
    cache: "FakeAdapters"
    name: str
    digest: str
    placed: bool = False
    released: bool = False

    @property
    def pages(self) -> Mapping[str, tuple[int, ...]]:
        if not self.placed or self.released:
            raise RuntimeError("pages of a lease that is not placed")
        return {MODULE: self.cache.resident[self.digest]}

    @property
    def traits(self) -> Traits:
        return self.cache.traits.get(self.digest, PLAIN)

    @property
    def ready(self) -> bool:
        return self.digest in self.cache.loaded

    @property
    def resident(self) -> bool:
        return self.digest in self.cache.resident

    @property
    def error(self) -> OpenLoraError | None:
        reason = self.cache.failed.get(self.digest)
        return AdapterUnavailable(self.name, self.digest, reason) if reason else None

    def release(self) -> None:
        if not self.released:
            self.released = True
            self.cache.leases.remove(self)


@dataclass(eq=False)
class FakeAdapters:
    """Adapters that load when told to and take `rank_pages(number)` pages of one module of a small pool.

    Attributes:
        traits: of those that are not plain.
        loaded: digests in host memory.
        content: page -> the digest written into it last.
        writes: of adapters into the pool.
    """

    num_pages: int = 1000
    automatic: bool = True
    rank_pages: Callable[[int], int] = lambda number: 1 + number % 3
    min_residency: float = 0.0
    clock: Callable[[], float] = lambda: 0.0
    placed_at: dict[str, float] = field(default_factory=dict)
    writes: int = 0
    traits: dict[str, Traits] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    resident: dict[str, tuple[int, ...]] = field(default_factory=dict)
    content: dict[int, str] = field(default_factory=dict)
    leases: list[FakeLease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.on_ready: Callable[[str], None] = lambda digest: None

    def acquire(self, *adapters: tuple[str, str]) -> list[FakeLease]:
        leases = [FakeLease(self, name, digest) for name, digest in adapters]
        self.leases += leases
        if self.automatic:
            self.loaded.update(digest for _, digest in adapters)
        return leases

    def finish_load(self, digest: str) -> None:
        self.loaded.add(digest)
        self.on_ready(digest)

    def fail_load(self, digest: str) -> None:
        self.failed[digest] = "the file is broken"
        self.on_ready(digest)

    def place(self, *leases: FakeLease, urgent: bool = False) -> bool:
        if any(lease.error or not lease.ready for lease in leases):
            return False
        missing, kept, free = self._room(leases, (), spared=set() if urgent else self._fresh())
        if sum(missing.values()) > len(free):
            return False
        if missing:
            self.resident = kept
        for digest, count in missing.items():
            self.resident[digest] = tuple(free[:count])
            self.content.update(dict.fromkeys(free[:count], digest))
            self.placed_at[digest] = self.clock()
            self.writes += 1
            del free[:count]
        for lease in leases:
            lease.placed = True
        return True

    def fits(self, leases: Iterable[FakeLease], without: Iterable[FakeLease]) -> bool:
        leases = list(leases)
        missing, _, free = self._room(leases, without, spared=set())
        return all(lease.ready and not lease.error for lease in leases) and sum(missing.values()) <= len(free)

    def prefetch(self) -> bool:
        return False

    def displace(self, *leases: FakeLease) -> None:
        assert all(lease.placed and not lease.released for lease in leases)
        for lease in leases:
            lease.placed = False

    def reset(self) -> None:
        assert not any(lease.placed for lease in self.leases)
        self.resident, self.content, self.placed_at = {}, {}, {}

    def _fresh(self) -> set[str]:
        """What others wait for and has not had its time."""
        awaited = {lease.digest for lease in self.leases if not lease.placed and lease.resident}
        return {digest for digest in awaited if self.clock() - self.placed_at[digest] < self.min_residency}

    def _room(
        self, leases: Iterable[FakeLease], without: Iterable[FakeLease], spared: set[str]
    ) -> tuple[dict[str, int], dict[str, tuple[int, ...]], list[int]]:
        """Pages that the missing need, where those in use lie, and the pages that are then free."""
        wanted = {lease.digest: self.rank_pages(int(lease.digest[1:])) for lease in leases}
        leaving = list(without)
        used = {lease.digest for lease in self.leases if lease.placed and lease not in leaving} | set(wanted) | spared
        missing = {digest: count for digest, count in wanted.items() if digest not in self.resident}
        kept = {digest: pages for digest, pages in self.resident.items() if digest in used}
        taken = {page for pages in kept.values() for page in pages}
        return missing, kept, [page for page in range(1, self.num_pages + 1) if page not in taken]


@dataclass
class FakeResult:
    kind: str
    outputs: list[RowOutput]
    log: list[str]
    error: Exception | None = None

    def read(self) -> list[RowOutput]:
        self.log.append(f"read {self.kind}")
        if self.error:
            raise self.error
        return self.outputs


class FakeRunner:
    """Checks every plan against the contract of `engine/plan.py`, then computes it.

    Attributes:
        plans: every plan so far.
        log: every plan run and every result read so far, in order.
        fail: raised by the next `run`; `fail_read` by the next `read`.
        lost: whether the device's state went with a failed `run`, until `reset`.
    """

    def __init__(self, config: EngineConfig, adapters: FakeAdapters) -> None:
        self._config = config
        self._adapters = adapters
        self._blocks: dict[int, list[tuple[int, int, int] | None]] = {}
        self._last: dict[int, int] = {}
        self._seen: dict[int, list[int]] = {}
        self.plans: list[StepPlan] = []
        self.log: list[str] = []
        self.lost = False
        self.fail: Exception | None = None
        self.fail_read: Exception | None = None

    def prepare_slot(
        self,
        slot: int,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        params: SamplingParams,
        feed_last: bool = False,
    ) -> None:
        assert 0 <= slot < self._config.max_rows
        self._seen[slot] = [*prompt_ids, *output_ids]
        self._last.pop(slot, None)
        if feed_last:
            self._last[slot] = self._seen[slot][-1]

    def copy_block(self, source: int, target: int) -> None:
        self._blocks[target] = list(self._blocks[source])

    def reset(self) -> None:
        self._blocks, self._last, self._seen = {}, {}, {}
        self.lost = False

    def run(self, plan: StepPlan) -> FakeResult:
        assert not self.lost, "a step after one that failed"
        if self.fail:
            error, self.fail = self.fail, None
            self.lost = True
            raise error
        self._check(plan)
        self.plans.append(plan)
        read_error, self.fail_read = self.fail_read, None
        self.log.append(f"run {plan.kind}")
        outputs = [self._tile(plan.kind, tile) for tile in plan.tiles]
        self._join(plan, outputs)
        return FakeResult(plan.kind, outputs, self.log, read_error)

    def _check(self, plan: StepPlan) -> None:
        slots = [tile.slot for tile in plan.tiles]
        if plan.kind == "decode":
            assert len(set(slots)) == len(slots) <= self._config.max_rows
            assert all(tile.tokens is None and tile.sampling for tile in plan.tiles)
        else:
            size = self._config.prefill_tile
            assert len(plan.tiles) <= self._config.prefill_chunk // size
            assert all(tile.tokens and tile.start % size + len(tile.tokens) <= size for tile in plan.tiles)
        assert (plan.kind == "score") or not any(tile.targets for tile in plan.tiles)
        assert plan.kind == "decode" or not any(tile.ensemble for tile in plan.tiles)
        items = sum(len(pages[MODULE]) for tile in plan.tiles for pages, _ in tile.pages)
        assert items <= self._config.work_items
        assert all(0 < block < self._config.kv_blocks for tile in plan.tiles for block in tile.blocks)

    def _tile(self, kind: str, tile: Tile) -> RowOutput:
        mix = mix_value((self._adapter(pages[MODULE]), weight) for pages, weight in tile.pages)
        for offset, token in enumerate(tile.tokens or (self._last[tile.slot],)):
            self._write(tile, tile.start + offset, token, mix)
        end = tile.start + len(tile.tokens or (0,))
        tokens = [self._read(tile, position, mix) for position in range(end)]
        if kind == "score":
            return self._score(tile, tokens, mix)
        return self._sample(tile.slot, tokens, mix, tile.sampling) if tile.sampling else None

    def _sample(self, slot: int, tokens: list[int], mix: int, row: RowSampling) -> TokenLogprobs:
        assert self._seen[slot] == tokens, "the slot's state is another sequence's"
        token = next_token(tokens, mix, row.seed, row.sample, row.forbidden)
        self._last[slot] = token
        self._seen[slot].append(token)
        return TokenLogprobs(token, -1.0, {token: -1.0} if row.logprobs else {})

    def _join(self, plan: StepPlan, outputs: list[RowOutput]) -> None:
        """The rows of an ensemble get one token."""
        for row, tile in enumerate(plan.tiles):
            if tile.ensemble is None or tile.member:
                continue
            rows = range(row, row + len(tile.ensemble.members))
            members = [plan.tiles[each] for each in rows]
            assert [(each.ensemble, each.member) for each in members] == [(tile.ensemble, k) for k in range(len(rows))]
            assert all((each.sampling, each.start) == (tile.sampling, tile.start) for each in members)
            alone = [output.token_id for output in outputs[rows.start : rows.stop] if isinstance(output, TokenLogprobs)]
            token = joint_token(alone, tile.ensemble.weights)
            for each in rows:
                slot = plan.tiles[each].slot
                self._last[slot] = self._seen[slot][-1] = token
                outputs[each] = TokenLogprobs(token, -1.0, {})

    def _score(self, tile: Tile, tokens: list[int], mix: int) -> TileScores | None:
        if tile.targets is None:
            return None
        pairs = [score(tokens[: tile.start + i + 1], mix, target) for i, target in enumerate(tile.targets)]
        return TileScores(tuple(value for value, _ in pairs), tuple(greedy for _, greedy in pairs))

    def _write(self, tile: Tile, position: int, token: int, mix: int) -> None:
        block, offset = divmod(position, self._config.kv_block)
        empty: list[tuple[int, int, int] | None] = [None] * self._config.kv_block
        self._blocks.setdefault(tile.blocks[block], empty)[offset] = (position, token, mix)

    def _read(self, tile: Tile, position: int, mix: int) -> int:
        block, offset = divmod(position, self._config.kv_block)
        entry = self._blocks[tile.blocks[block]][offset]
        assert entry is not None, "a position was read before it was written"
        before = [0] if self._adapters.traits else []  # those who are invoked leave what is before to the base model
        assert entry[0] == position, "a stale block was read"
        assert entry[2] in (mix, *before), "a stale block was read"
        return entry[1]

    def _adapter(self, pages: tuple[int, ...]) -> int:
        digests = {self._adapters.content[page] for page in pages}
        assert len(digests) == 1, "the pages belong to several adapters"
        return int(digests.pop()[1:])


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """An engine on fakes, stepped by hand."""

    config: EngineConfig
    adapters: FakeAdapters = field(default_factory=FakeAdapters)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.runner = FakeRunner(self.config, self.adapters)
        self.engine = Engine(
            self.runner,
            self.adapters,
            FakeStore(),
            LetterTokenizer(),
            self.config,
            vocab_size=VOCAB,
            eos_token_ids=(EOS,),
            clock=self.clock,
        )

    def submit(self, request: GenerateRequest | ScoreRequest) -> EventStream:
        return self.engine.submit(request)

    def settle(self, limit: int = 10_000) -> None:
        """Steps until nothing is left to do."""
        for _ in range(limit):
            if not self.engine.step():
                return
        raise AssertionError("the engine does not come to rest")

    def check_idle(self) -> None:
        """Nothing is held for anybody."""
        stats = self.engine.stats
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.free_kv_blocks == stats.kv_blocks
        assert sorted(self.engine._scheduler.room.slots) == list(range(self.config.max_rows))
        assert not +self.engine._scheduler.room.items
        assert not self.adapters.leases


def small_config(**changes: object) -> EngineConfig:
    """Few rows and blocks, so that they run out."""
    settings: dict[str, object] = {
        "max_rows": 4,
        "prefill_chunk": 32,
        "max_model_len": 128,
        "kv_block": 16,
        "kv_blocks": 33,
        "work_items": 64,
    }
    return EngineConfig.model_validate(settings | changes)


def generate(
    prompt: Iterable[int],
    adapters: Mapping[str, float] | None = None,
    *,
    deadline: float | None = None,
    scheduling: SchedulingParams = DEFAULT_SCHEDULING,
    ensemble: Ensemble | None = None,
    **params: Any,
) -> GenerateRequest:
    """A request for eight tokens of seed 0, unless `params` say otherwise."""
    return GenerateRequest(
        prompt_ids=tuple(prompt),
        params=SamplingParams.model_validate({"seed": 0, "max_tokens": 8, "ignore_eos": True} | params),
        mix=tuple(MixItem(name, weight) for name, weight in (adapters or {}).items()),
        ensemble=ensemble,
        deadline=deadline,
        scheduling=scheduling,
    )
