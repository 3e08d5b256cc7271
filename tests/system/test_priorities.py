"""Work of a low class beside that of a high one: who starts at once, and who waits for how long."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from openlora_jax import LLM, SchedulingParams
from openlora_jax.engine.request import Finished, GenerateRequest
from openlora_jax.engine.scheduler import Schedule
from openlora_jax.inputs import mix_of, prompt_ids
from openlora_jax.outputs import Generation, collect
from tests.system.compare import GREEDY, assert_same
from tests.system.models import tiny_llm

PROMPT = "the sea is " * 3
PARAMS = GREEDY.model_copy(update={"max_tokens": 150})
MAX_WAIT = 3.0


def request(llm: LLM, adapter: str, scheduling: SchedulingParams, **params: Any) -> GenerateRequest:
    ids = prompt_ids(PROMPT, llm.tokenizer)
    return GenerateRequest(
        prompt_ids=ids, params=PARAMS.model_copy(update=params), mix=mix_of(adapter), scheduling=scheduling
    )


def test_high_priority_starts_within_two_steps_of_its_load(
    llm: LLM, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = SchedulingParams(priority="low", tenant="batch"), SchedulingParams(priority="high")
    scheduler, steps = llm.engine._scheduler, 0
    plain = scheduler.schedule

    def schedule(now: float) -> Schedule:
        nonlocal steps
        waiting = [party[0].request for party in scheduler.waiting]
        steps += sum(live.ready is not None and live.request.scheduling == high for live in waiting)
        return plain(now)

    monkeypatch.setattr(scheduler, "schedule", schedule)
    before = llm.engine.stats.preemptions
    streams = [llm.engine.submit(request(llm, name, low)) for name in names[:8]]
    firsts = [next(stream) for stream in streams]
    urgent = llm.engine.submit(request(llm, names[150], high, max_tokens=4))
    *_, last = urgent
    assert isinstance(last, Finished)
    assert llm.engine.stats.running + llm.engine.stats.waiting > 0
    assert 1 <= steps <= 2
    assert llm.engine.stats.preemptions == before + 1
    for name, first, stream in zip(names[:8], firsts, streams, strict=True):
        found, [alone] = collect(chain([first], stream)), llm.generate([PROMPT], PARAMS, [name])
        assert isinstance(found, Generation)
        assert_same(found, alone)


def test_ageing_bounds_the_wait_behind_a_higher_class_that_never_ends(
    base: Path, store: Path, names: list[str]
) -> None:
    low, high = SchedulingParams(priority="low"), SchedulingParams(priority="high")
    with tiny_llm(base, store, max_wait=MAX_WAIT) as llm, ThreadPoolExecutor(1) as threads:
        flooding = request(llm, names[0], high, max_tokens=8)
        flood = deque(llm.engine.submit(flooding) for _ in range(3 * llm.config.max_rows))
        end = time.monotonic() + 4 * MAX_WAIT
        waiting = threads.submit(collect, llm.engine.submit(request(llm, names[0], low, max_tokens=1)))
        while not waiting.done() and time.monotonic() < end:
            flood.append(llm.engine.submit(flooding))
            collect(flood.popleft())
        for stream in flood:
            stream.cancel()
        wait = waiting.result().timings.queue
    assert MAX_WAIT / 2 <= wait <= MAX_WAIT
