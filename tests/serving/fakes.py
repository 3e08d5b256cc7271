"""A library whose answers can be worked out by hand.

The vocabulary is ASCII, a token a character. The base model continues the alphabet: after "abc" comes "def...". Sample
i takes steps of i + 1: the second one says "eg...". An adapter answers the same in upper case. The token after "z" is
"{", the end token. Every token's log-probability is -1, its one alternative is token 0 at -2. A completion is scored
-0.5 a token (greedy) where it goes on with the alphabet, else -8.

A step makes one token of every live sample, and takes `step` seconds.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from openlora_jax.adapters.counters import Counters, MemoryUse, PageState
from openlora_jax.adapters.manifest import LowRank, Manifest
from openlora_jax.adapters.mixes import Member, NamedMix
from openlora_jax.adapters.registry import Names, Registration
from openlora_jax.config import EngineConfig
from openlora_jax.engine.admission import Admission
from openlora_jax.engine.engine import EngineStats
from openlora_jax.engine.members import resolve_names
from openlora_jax.engine.request import Delta, Finished, GenerateRequest, Scored, ScoreRequest, Timings, TokenLogprobs
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import (
    AdapterUnavailable,
    BadCheckpoint,
    DeadlineExceeded,
    EngineStopped,
    Overloaded,
)
from serving.proto import openlora_pb2 as pb

VOCAB = 128
END = ord("{")
SEED = 7
TIMINGS = Timings(queue=0.25, load=0.5, prefill=1.0, decode=2.0)


def generate(text: str = "abc", **sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), sampling=pb.SamplingParams(**sampling))


@dataclass
class FakeTokenizer:
    """`texts` counts what was tokenised."""

    texts: int = 0

    def encode(self, text: str, special: bool = True) -> list[int]:
        self.texts += 1
        return [ord(character) for character in text]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [ord(character) for message in messages for character in f"{message['role'][0]}:{message['content']}"]


class FakeStore:
    """Adapters of rank 20 on q and v, all alike; the digest is the name's bytes in hexadecimal, padded."""

    def __init__(self, *adapters: str, damaged: str = "") -> None:
        self.adapters = adapters
        self.mixes: dict[str, NamedMix] = {}
        self.damaged = damaged

    def registrations(self) -> Mapping[str, Registration]:
        return {name: Registration(digest_of(name), "2026-01-01T00:00:00+00:00") for name in self.adapters}

    def names(self) -> Names:
        return Names(self.registrations(), self.mixes)

    def members(self, name: str) -> tuple[Member, ...]:
        return self.names().members(name)

    def is_remote(self, digest: str) -> bool:
        return digest == digest_of("remote")

    def manifest(self, digest: str) -> Manifest:
        if self.damaged and digest == digest_of(self.damaged):
            raise BadCheckpoint("/srv/store", "manifest.json is no JSON")
        q = LowRank(layers=2, d_in=4, d_out=4, rank=20)
        return Manifest(base_digest="0" * 64, dtype="float32", modules={"q_proj": q, "v_proj": q})


def digest_of(name: str) -> str:
    return name.encode().hex().ljust(64, "0")[:64]


@dataclass
class FakeStatus:
    digest: str
    state: Literal["absent", "host", "loading", "resident", "draining"] = "absent"
    requests: int = 0
    pinned: bool = False
    host_bytes: int = 0


@dataclass
class FakeCache:
    """Three of ten pages are free, 700 of 1,000 bytes taken. The load of `stalled` ends when it is given up."""

    known: dict[str, FakeStatus] = field(default_factory=dict)
    broken: str = ""
    stalled: str = ""
    loading: int = 0
    counters: Counters = field(default_factory=Counters)

    def memory(self) -> MemoryUse:
        pages: dict[str, dict[PageState, int]] = {
            "q_proj": {"free": 1, "used": 4},
            "v_proj": {"free": 2, "idle": 2, "pinned": 1},
        }
        return MemoryUse(host_bytes=700, host_budget=1000, pages=pages)

    def status(self) -> list[FakeStatus]:
        return list(self.known.values())

    def load(self, name: str, digest: str, given_up: threading.Event) -> None:
        if name == self.broken:
            raise AdapterUnavailable(name, digest, "it takes 9 pages of q_proj and the pool has 8")
        if name == self.stalled:
            self.loading += 1
            assert given_up.wait(30.0)
            self.loading -= 1
            raise CancelledError
        self.known[digest] = FakeStatus(digest, "host")

    def unload(self, digest: str) -> None:
        self.known.pop(digest, None)

    def pin(self, name: str, pinned: bool) -> None:
        digest = digest_of(name)
        self.known.setdefault(digest, FakeStatus(digest)).pinned = pinned


@dataclass(eq=False)
class Live:
    request: GenerateRequest
    stream: EventStream
    digests: tuple[str, ...]
    made: int = 0
    completion_tokens: int = 0
    open_samples: set[int] = field(default_factory=set)


class FakeEngine:
    """Steps on its own thread, as the real one does, from `start` to `stop`.

    Attributes:
        fault: raised by the next `submit`.
        waiting: requests that `stats` says wait.
        submitted: every request, in order.
    """

    def __init__(self, store: FakeStore, config: EngineConfig, step: float = 0.001) -> None:
        self.fault: Exception | None = None
        self.waiting = 0
        self._generated = 0
        self.submitted: list[GenerateRequest | ScoreRequest] = []
        self.ended: Future[str] = Future()
        self._store, self._config, self._step = store, config, step
        self._live: list[Live] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._reason = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def live(self) -> int:
        """Requests that hold anything."""
        with self._lock:
            return len(self._live)

    @property
    def stats(self) -> EngineStats:
        """As if every request ran at once, in blocks of its own."""
        return EngineStats(
            running=self.live,
            waiting=self.waiting,
            free_kv_blocks=50 - self.live,
            kv_blocks=50,
            peak_kv_blocks=9,
            generated_tokens=self._generated,
            steps=0,
            preemptions=3,
            cached_tokens=11,
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.fail("it was asked to")
        self._thread.join()

    def fail(self, reason: str) -> None:
        """Ends by itself."""
        self._reason = self._reason or reason
        self._stopped.set()

    def submit(self, request: GenerateRequest | ScoreRequest) -> EventStream:
        if self.fault:
            raise self.fault
        admission = Admission(self._config, VOCAB)
        stream = EventStream(lambda: None)
        digests = tuple(digest for _, digest in resolve_names(request, self._store)[1])
        self.submitted.append(request)
        if isinstance(request, ScoreRequest):
            stream.close(_score(admission.score(request), digests))
            return stream
        request = admission.generate(request)
        live = Live(request, stream, digests, open_samples=set(range(request.params.n)))
        with self._lock:
            if len(self._live) >= self._config.max_queue:
                raise Overloaded("waiting requests", self._config.max_queue)
            self._live.append(live)
        return stream

    def _run(self) -> None:
        while not self._stopped.wait(self._step):
            with self._lock:
                self._live = [live for live in self._live if not self._advance(live)]
        for live in self._live:
            live.stream.close(error=EngineStopped(self._reason))
        self._live = []
        self.ended.set_result(self._reason)

    def _advance(self, live: Live) -> bool:
        """One step of one request; whether that was its last."""
        if live.stream.cancelled:
            live.stream.close()
            return True
        if live.request.deadline is not None and time.monotonic() > live.request.deadline:
            live.stream.close(error=DeadlineExceeded("decode"))
            return True
        live.made += 1
        for index in sorted(live.open_samples):
            delta = _delta(live, index)
            live.completion_tokens += 1
            self._generated += 1
            live.stream.put(delta)
            if delta.finish_reason:
                live.open_samples.remove(index)
        if not live.open_samples:
            live.stream.close(_finished(live))
        return not live.open_samples


def _delta(live: Live, index: int) -> Delta:
    params, prompt = live.request.params, live.request.prompt_ids
    token = min(prompt[-1] + live.made * (index + 1), END)
    text = "" if token == END else chr(token).upper() if live.digests else chr(token)
    logprobs = (TokenLogprobs(token, -1.0, {0: -2.0}),) if params.logprobs is not None else ()
    reason: Literal["stop", "length"] | None = "stop" if token == END else None
    if reason is None and live.made == params.max_tokens:
        reason = "length"
    return Delta(index=index, token_ids=(token,), text=text, logprobs=logprobs, finish_reason=reason)


def _finished(live: Live) -> Finished:
    return Finished(
        seed=SEED if live.request.params.seed is None else live.request.params.seed,
        adapter_digests=live.digests,
        prompt_tokens=len(live.request.prompt_ids),
        completion_tokens=live.completion_tokens,
        timings=TIMINGS,
    )


def _score(request: ScoreRequest, digests: tuple[str, ...]) -> Scored:
    before = (request.prompt_ids + request.completion_ids)[len(request.prompt_ids) - 1 :]
    greedy = tuple(token == last + 1 for last, token in zip(before, request.completion_ids, strict=False))
    logprobs = tuple(-0.5 if right else -8.0 for right in greedy)
    return Scored(logprobs=logprobs, greedy=greedy, adapter_digests=digests, timings=TIMINGS)


class FakePlan:
    weights, kv, sampler, activations = 1000, 200, 30, 4
    pools: Mapping[str, int] = MappingProxyType({"q_proj": 500, "v_proj": 600})


class FakeModel:
    vocab_size = VOCAB


class FakeLLM:
    base_digest = "f" * 64
    backend = "cpu"
    model = FakeModel()
    plan = FakePlan()

    def __init__(self, *names: str, damaged: str = "", step: float = 0.001, max_queue: int = 1024) -> None:
        self.config = EngineConfig(max_model_len=256, max_queue=max_queue)
        self.tokenizer = FakeTokenizer()
        self.store = FakeStore(*names, damaged=damaged)
        self.adapters = FakeCache()
        self.engine = FakeEngine(self.store, self.config, step)

    def close(self) -> None:
        self.engine.stop()


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """Waits for what follows an answer, such as its log line; fails if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.005)
