"""A day at the engine in virtual time: arrivals, loads and steps take the seconds that they are told to take.

The scheduler and the engine are the real ones; the device and the adapters are `fakes`, so every answer is checked too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from openlora_jax.config import EngineConfig
from openlora_jax.engine.request import GenerateRequest, Scored, ScoreRequest
from openlora_jax.engine.scheduling_params import Priority, SchedulingParams
from openlora_jax.engine.sequence import LiveRequest
from openlora_jax.engine.stream import EventStream
from tests.openlora_jax.engine.answers import collect, expected_scores
from tests.openlora_jax.engine.cases import check
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate

MAX_ITERATIONS = 20_000


@dataclass(frozen=True)
class Arrival:
    """A request at `at` seconds for adapter number `adapter`; 0 is the base model. `tokens` of 0 is a text to score."""

    at: float
    adapter: int = 0
    priority: Priority = "normal"
    tenant: str = ""
    prompt: int = 8
    tokens: int = 8

    @property
    def request(self) -> GenerateRequest | ScoreRequest:
        scheduling = SchedulingParams(priority=self.priority, tenant=self.tenant)
        mix = {f"a{self.adapter}": 1.0} if self.adapter else {}
        prompt = tuple((3 * n + self.adapter) % 90 for n in range(self.prompt))
        request = generate(prompt, mix, scheduling=scheduling, max_tokens=self.tokens or 1)
        if self.tokens:
            return request
        return ScoreRequest(prompt_ids=prompt, completion_ids=(7,) * 20, mix=request.mix, scheduling=scheduling)


@dataclass(eq=False)
class Journey:
    """What became of one arrival. Times are in seconds, iterations are counted from 0.

    Attributes:
        loaded: iteration at whose begin its adapters were in host memory.
        started: iteration in which it started first.
    """

    arrival: Arrival
    live: LiveRequest
    stream: EventStream
    loaded: int | None = None
    started: int | None = None

    @property
    def wait(self) -> float:
        assert self.live.started is not None
        return self.live.started - self.live.submitted


@dataclass
class Simulation:
    """An engine, a pool of `pages` for adapters of `rank_pages(number)` pages, and what things take.

    Attributes:
        load: seconds of a load, of as many at a time as there are.
        chunk, step: seconds of a chunk and of a decode step.
    """

    config: EngineConfig
    pages: int = 4
    rank_pages: Callable[[int], int] = lambda number: 1
    load: float = 0.5
    chunk: float = 0.05
    step: float = 0.1
    journeys: list[Journey] = field(default_factory=list)

    def __post_init__(self) -> None:
        adapters = FakeAdapters(num_pages=self.pages, automatic=False, rank_pages=self.rank_pages)
        self.bench = Bench(self.config, adapters)
        self.bench.clock.now = 0.0
        adapters.min_residency, adapters.clock = self.config.min_residency, self.bench.clock
        self._loads: dict[str, float] = {}

    def run(self, arrivals: Iterable[Arrival]) -> list[Journey]:
        """What became of them, in the order of their arrival; each answer is what its request alone would get."""
        coming = sorted(arrivals, key=lambda arrival: arrival.at)
        clock, engine = self.bench.clock, self.bench.engine
        for iteration in range(MAX_ITERATIONS):
            while coming and coming[0].at <= clock.now:
                self._arrive(coming.pop(0))
            self._end_loads(iteration)
            busy = engine.step()
            self._note_starts(iteration)
            if not (busy or coming or engine._live):
                self._check()
                return self.journeys
            kinds = [launch.plan.kind for launch, _ in engine._dispatched]
            clock.now += sum(self.step if kind == "decode" else self.chunk for kind in kinds) or 0.01
        raise AssertionError("somebody waits for ever")

    def _arrive(self, arrival: Arrival) -> None:
        before = set(self.bench.engine._queued)
        stream = self.bench.submit(arrival.request)
        [live] = self.bench.engine._queued - before
        self.journeys.append(Journey(arrival, live, stream))
        for lease in live.leases:
            self._loads.setdefault(lease.digest, self.bench.clock.now + self.load)

    def _end_loads(self, iteration: int) -> None:
        adapters = self.bench.adapters
        for digest, end in self._loads.items():
            if end <= self.bench.clock.now and digest not in adapters.loaded:
                adapters.finish_load(digest)
        for journey in self.journeys:
            if journey.loaded is None and all(lease.ready for lease in journey.live.leases):
                journey.loaded = iteration

    def _note_starts(self, iteration: int) -> None:
        for journey in self.journeys:
            if journey.started is None and journey.live.started is not None:
                journey.started = iteration

    def _check(self) -> None:
        self.bench.check_idle()
        for journey in self.journeys:
            request, answer = journey.arrival.request, collect(journey.stream)
            if isinstance(request, GenerateRequest):
                check(request, answer)
            else:
                assert isinstance(answer.last, Scored)
                assert list(zip(answer.last.logprobs, answer.last.greedy, strict=True)) == expected_scores(request)
