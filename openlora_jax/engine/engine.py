"""The engine: takes requests from any thread, runs them on its own, sends their events back.

The life of a request. `submit` checks it, resolves each adapter's name to a digest, once, and acquires it, which starts
its load; all this on the caller's thread. The engine thread then repeats: take new requests, end those that were
cancelled, came too late or lost an adapter, schedule, dispatch, and read what was dispatched one iteration *before*, so
the device never waits for the host. A sample that ended was therefore dispatched once or twice too often: that is
dropped. Whatever way a request ends, `_end` is where its slots, KV blocks and adapters are given back.
"""

import itertools
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from openlora_jax.config import EngineConfig
from openlora_jax.engine.adapters import Adapters
from openlora_jax.engine.admission import Admission
from openlora_jax.engine.deadlines import Deadlines
from openlora_jax.engine.holding import hold
from openlora_jax.engine.launch import Launch
from openlora_jax.engine.members import Store, resolve_names
from openlora_jax.engine.plan import Runner, StepResult, TileScores
from openlora_jax.engine.rates import Rates
from openlora_jax.engine.request import Event, GenerateRequest, ScoreRequest, TokenLogprobs
from openlora_jax.engine.results import last_events, take_scores, take_token
from openlora_jax.engine.scheduler import Schedule, Scheduler
from openlora_jax.engine.sequence import LiveRequest, Sequence
from openlora_jax.engine.stopping import Detokenizer, Output
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import DeadlineExceeded, EngineStopped, NotFinite, OpenLoraError, Overloaded

POLL = 0.05
"""Seconds between looks at deadlines and adapters while requests wait and nothing runs."""

MAX_FAILURES = 2
"""Failed iterations in a row after which the engine stops."""

log = logging.getLogger(__name__)


@runtime_checkable
class Tokenizer(Protocol):
    """The tokenizer, as the engine sees it."""

    def stream(self) -> Detokenizer:
        """A fresh detokenizer for one sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """What the engine does now, and has done since it was made.

    Attributes:
        running: sequences with a slot.
        waiting: requests that have not started.
        free_kv_blocks: of `kv_blocks`, without the scratch block.
        peak_kv_blocks: that sequences held at once, at most.
        generated_tokens: sampled tokens that were delivered.
        steps: iterations that dispatched work.
        preemptions: sequences that gave up their KV blocks and were recomputed.
        cached_tokens: of prompts, whose KV was in memory when their request started.
    """

    running: int
    waiting: int
    free_kv_blocks: int
    kv_blocks: int
    peak_kv_blocks: int
    generated_tokens: int
    steps: int
    preemptions: int
    cached_tokens: int = 0


class Engine:
    """One model's requests. `submit`, `stats` and `stop` may be called from any thread.

    A failing iteration ends every request that had started, with EngineStopped; slots, KV blocks and pages are made
    anew. The engine goes on, unless the next iteration fails too: then it ends them all, refuses further ones and ends.

    Attributes:
        ended: done when the engine thread has ended and every request with it; its result says why.
    """

    def __init__(
        self,
        runner: Runner,
        adapters: Adapters,
        store: Store,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._adapters = adapters
        self._store = store
        self._tokenizer = tokenizer
        self._eos = frozenset(eos_token_ids)
        self._clock = clock
        self._max_queue = config.max_queue
        self._admission = Admission(config, vocab_size)
        self._scheduler = Scheduler(config, adapters)
        self._deadlines = Deadlines(Rates(), config.prefill_chunk)
        self._launched = self._read = 0.0
        self._live: set[LiveRequest] = set()
        self._dispatched: list[tuple[Launch, StepResult]] = []
        self._generated = 0
        self._steps = 0
        self._failures = 0
        self._pause = POLL
        self.ended: Future[str] = Future()

        self._order = itertools.count()
        self._thread = threading.Thread(target=self._run, name="openlora-engine", daemon=True)
        self._changed = threading.Condition()  # guards what follows
        self._arrivals: deque[LiveRequest] = deque()
        self._queued: set[LiveRequest] = set()
        self._woken = False
        self._closed: str | None = None
        self._stop_at: float | None = None
        adapters.on_ready = self._wake

    def start(self) -> None:
        """Starts the engine thread. Requests submitted before wait for it."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Refuses new requests, lets the others go on for `grace` seconds, then ends the rest with EngineStopped."""
        with self._changed:
            self._closed = self._closed or "it is shutting down"
            self._stop_at = self._clock() + grace
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._end_all()

    @property
    def stats(self) -> EngineStats:
        blocks = self._scheduler.blocks
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._queued),
            free_kv_blocks=blocks.num_free,
            kv_blocks=blocks.usable,
            peak_kv_blocks=blocks.peak,
            generated_tokens=self._generated,
            steps=self._steps,
            preemptions=self._scheduler.preemptions,
            cached_tokens=self._scheduler.room.found,
        )

    def submit(self, request: GenerateRequest | ScoreRequest) -> EventStream:
        """Admits a request; its events come through the stream.

        Raises:
            InvalidRequest: it can never be served.
            UnknownAdapter: a name of its mix is not registered.
            Overloaded: `max_queue` requests wait already.
            EngineStopped: the engine is shutting down or has failed.
        """
        if isinstance(request, GenerateRequest):
            request = self._admission.generate(request)
        else:
            request = self._admission.score(request)
        request, adapters = resolve_names(request, self._store)
        live = LiveRequest(request, EventStream(self._wake), self._clock())
        self._enter_queue(live)
        try:
            live.leases = self._adapters.acquire(*adapters)
            if all(lease.ready for lease in live.leases):
                live.ready = live.submitted
            live.sequences = self._sequences(live, request)
            self._arrive(live)
        except BaseException:
            self._leave_queue(live)
            for lease in live.leases:
                lease.release()
            raise
        return live.stream

    def _sequences(self, live: LiveRequest, request: GenerateRequest | ScoreRequest) -> list[Sequence]:
        if isinstance(request, ScoreRequest):
            return [Sequence.to_score(live, request)]
        params = request.params
        live.seed = secrets.randbelow(2**31) if params.seed is None else params.seed
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        outputs = (Output(params, ends, self._tokenizer.stream()) for _ in range(params.n))
        samples = (Sequence.sample(live, request, index, ends, output) for index, output in enumerate(outputs))
        return [row for sample in samples for row in sample]

    def _enter_queue(self, live: LiveRequest) -> None:
        with self._changed:
            if self._closed:
                raise EngineStopped(self._closed)
            if len(self._queued) >= self._max_queue:
                raise Overloaded("waiting requests", self._max_queue)
            live.order = next(self._order)
            self._queued.add(live)

    def _arrive(self, live: LiveRequest) -> None:
        with self._changed:
            if self._closed:
                raise EngineStopped(self._closed)
            self._arrivals.append(live)
        self._wake()

    def _leave_queue(self, live: LiveRequest) -> None:
        with self._changed:
            self._queued.discard(live)

    def _wake(self, _digest: str = "") -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while not self._is_over():
                if not self.step():
                    self._rest()
        finally:
            self.ended.set_result(self._end_all())

    def _is_over(self) -> bool:
        with self._changed:
            idle = not self._live and not self._arrivals
            return self._stop_at is not None and (idle or self._clock() >= self._stop_at)

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._woken, min(POLL, self._pause) if self._live else None)
            self._woken, self._pause = False, POLL

    def step(self) -> bool:
        """One iteration, on the engine thread; False when there was nothing to do."""
        try:
            return self._iterate()
        except Exception:  # whatever it is, the clients that wait must be told, and the thread must live
            log.exception("an iteration of the engine failed")
            self._fail()
            return True

    def _iterate(self) -> bool:
        now = self._clock()
        self._receive(self._take_arrivals())
        self._end_hopeless(now)
        if self._idle and (seconds := hold(self._live, self._scheduler.level, self._deadlines.rates, now)):
            self._pause = seconds
            return False
        schedule = self._scheduler.schedule(now)
        for live, problem in schedule.refused:
            self._end(live, error=problem)
        previous, self._dispatched = self._dispatched, []
        began, self._launched = max(self._launched, self._read), now
        self._dispatch(schedule)
        for launch, result in previous:
            self._deliver(launch, result)
        if previous:
            self._failures = 0
            self._measure(previous, began)
        return bool(schedule or previous) or self._adapters.prefetch()

    @property
    def _idle(self) -> bool:
        """Whether nothing runs on the device, nor will if nothing starts."""
        return not self._dispatched and not self._scheduler.running

    def _measure(self, ran: Iterable[tuple[Launch, StepResult]], began: float) -> None:
        """How long what was just read has taken. It began at its dispatch, or when what was before it had been read."""
        self._read = self._clock()
        kinds = {launch.plan.kind: len(launch.sequences) for launch, _ in ran}
        rows = kinds.pop("decode", 0)
        self._deadlines.rates.iterated(self._read - began, chunk=bool(kinds), rows=rows)

    def _receive(self, arrivals: Iterable[LiveRequest]) -> None:
        """Ends those whose deadlines cannot be kept."""
        for live in arrivals:
            if live.request.scheduling.limits_time:
                ahead, rows = self._scheduler.ahead(live), len(self._scheduler.running)
                if error := self._deadlines.refusal(live, rows, ahead):
                    self._end(live, error=error)

    def _take_arrivals(self) -> list[LiveRequest]:
        with self._changed:
            arrivals = list(self._arrivals)
            self._arrivals.clear()
        for live in arrivals:
            self._live.add(live)
            self._scheduler.add(live)
        return arrivals

    def _end_hopeless(self, now: float) -> None:
        """Ends who was cancelled, is late or cannot have an adapter; notes whose adapters have come."""
        for live in list(self._live):
            deadline = live.request.deadline
            if live.ready is None and all(lease.ready for lease in live.leases):
                live.ready = now
                self._deadlines.rates.loaded(now - live.submitted, idle=self._idle)
            if live.stream.cancelled:
                self._end(live, *last_events(live, now))
            elif error := live.load_error:
                self._end(live, error=error)
            elif deadline is not None and now >= deadline:
                self._end(live, error=DeadlineExceeded(live.phase))
            elif late := self._deadlines.missed(live, now, len(self._scheduler.running)):
                self._end(live, error=late)

    def _dispatch(self, schedule: Schedule) -> None:
        for slot, sequence in schedule.started:
            self._leave_queue(sequence.request)
            if sequence.params:
                prompt, output = sequence.tokens[: sequence.prompt_len], sequence.tokens[sequence.prompt_len :]
                feed_last = sequence.ensemble is not None
                self._runner.prepare_slot(slot, prompt, output, sequence.params, feed_last)
        self._launch(schedule.chunk)
        for source, target in schedule.copies:
            self._runner.copy_block(source, target)
        self._launch(schedule.decode)
        self._steps += bool(self._dispatched)

    def _launch(self, launch: Launch | None) -> None:
        if launch is not None:
            self._dispatched.append((launch, self._runner.run(launch.plan)))

    def _deliver(self, launch: Launch, result: StepResult) -> None:
        """Reads a dispatched step and hands out what it says of those who still live."""
        for tile, sequence, output in zip(launch.plan.tiles, launch.sequences, result.read(), strict=True):
            if sequence.finished or output is None:
                continue
            live = sequence.request
            if not _finite(output):
                self._end(live, error=NotFinite(live.answerer))
                continue
            if isinstance(output, TileScores):
                sequence.in_flight -= 1
                if sequence.slot is None:
                    continue  # it gave way, and will be scored again
                ended = take_scores(sequence, tile.start, output)
            else:
                live.answered = self._clock() if live.answered is None else live.answered
                delta = take_token(sequence, output)
                if delta is None:
                    continue
                self._generated += 1
                live.stream.put(delta)
                ended = delta.finish_reason is not None
            if ended:
                self._scheduler.finish(sequence)
                if all(sample.finished for sample in live.sequences):
                    self._end(live, *last_events(live, self._clock()))

    def _end(self, live: LiveRequest, *last: Event, error: OpenLoraError | None = None) -> None:
        """The one end of every request: all that it holds is given back, then its reader is told."""
        try:
            for lease in live.leases:
                lease.release()
            self._scheduler.remove(live)
        finally:
            self._live.discard(live)
            self._leave_queue(live)
            if live.started is not None:
                self._deadlines.rates.ended(self._clock(), others_wait=bool(self._scheduler.waiting))
            live.stream.close(*last, error=error)

    def _fail(self) -> None:
        """What was dispatched is lost, and with it the requests that had started.

        The failed call may have taken the device's state with it, which none but those requests needs, and the pool,
        into which the adapters of the others are written anew.
        """
        self._dispatched = []
        self._failures += 1
        for live in [live for live in self._live if live.started is not None]:
            self._end(live, error=EngineStopped("a step failed on the device"))
        if self._failures == MAX_FAILURES:
            with self._changed:
                self._closed, self._stop_at = "its steps fail on the device", self._clock()
        else:
            self._scheduler.forget()
            self._runner.reset()
            self._adapters.reset()

    def _end_all(self) -> str:
        """Ends every request; returns why the engine has stopped."""
        with self._changed:
            self._closed = reason = self._closed or "its thread has ended"
        self._take_arrivals()
        for live in list(self._live):
            try:
                self._end(live, error=EngineStopped(reason))
            except Exception:  # one broken request must not leave the others' readers waiting
                log.exception("a request could not be ended cleanly")
        return reason


def _finite(output: TokenLogprobs | TileScores) -> bool:
    """Whether the row's logits were: NaN or an infinity among them leaves no log-probability finite."""
    return all(map(math.isfinite, output.logprobs if isinstance(output, TileScores) else (output.logprob,)))
