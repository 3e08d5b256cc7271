"""The promises about many adapters and about neighbours again, with a real model and two thousand adapters."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_jax import LLM, SamplingParams
from openlora_jax.adapters.store import AdapterStore
from tests.system.compare import GREEDY, assert_same, tokens
from tests.system.crowd import Crowd
from tests.system.models import install

pytestmark = [pytest.mark.slow, pytest.mark.real_model]

ADAPTERS = 2000
REQUESTS = 500
RESIDENT = 32
HOST_BYTES = 128 * 2**20
GROWTH = 300 * 2**20
"""Bytes by which the process may grow while it loads five times as much."""
CHAT = [{"role": "user", "content": "Tell me about the sea."}]
NAMES = [f"adapter-{index}" for index in range(ADAPTERS)]
STATUS = Path("/proc/self/statm")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> AdapterStore:
    path = tmp_path_factory.mktemp("many") / "store"
    install(path, smollm2, NAMES, dtype="bfloat16", scale=1.0)
    return AdapterStore(path)


def memory() -> int:
    """Bytes of the process that are in memory."""
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(what: str, started: float) -> float:
    now = time.monotonic()
    print(f"{what}: {now - started:.1f} s")  # noqa: T201
    return now


@pytest.mark.skipif(not STATUS.exists(), reason="the memory of a process is read as Linux shows it")
def test_two_thousand_adapters(smollm2: Path, many: AdapterStore) -> None:
    started = time.monotonic()
    with LLM(smollm2, many.path, pool_pages=RESIDENT + 1, host_cache_bytes=HOST_BYTES) as llm:
        started = timed("start", started)
        asked = random.Random(1).choices(NAMES, k=REQUESTS)
        llm.generate([CHAT] * 64, GREEDY, random.Random(2).choices(NAMES, k=64))
        before = memory()
        started = timed("warm-up of 64 requests", started)
        answers = llm.generate([CHAT] * REQUESTS, GREEDY, asked)
        started = timed(f"{REQUESTS} requests", started)
        alone = {name: llm.generate([CHAT], GREEDY, name)[0] for name in sorted(set(asked))}
        timed(f"{len(alone)} adapters alone", started)
        growth = memory() - before
        print(f"memory: {before / 2**20:.0f} MiB, grown by {growth / 2**20:.0f} MiB")  # noqa: T201
        host_bytes = sum(adapter.host_bytes for adapter in llm.adapters.status())
        llm.adapters.validate()

    compared = sum(assert_same(answer, alone[name]) for name, answer in zip(asked, answers, strict=True))
    print(f"{compared} of {16 * REQUESTS} tokens compared")  # noqa: T201
    assert compared >= 0.9 * 16 * REQUESTS
    assert len(set(tokens(list(alone.values())))) >= 0.95 * len(alone)
    assert [answer.adapter_digests for answer in answers] == [(many.resolve(name),) for name in asked]
    assert growth <= GROWTH
    assert 0 < host_bytes <= HOST_BYTES


@pytest.fixture(scope="module")
def deterministic(smollm2: Path, many: AdapterStore) -> Iterator[LLM]:
    with LLM(smollm2, many.path, pool_pages=RESIDENT + 1, deterministic=True) as llm:
        yield llm


@pytest.mark.parametrize("seed", range(3))
def test_company_changes_not_one_bit(deterministic: LLM, seed: int) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=seed, logprobs=5, ignore_eos=True)
    mix = [NAMES[seed], {NAMES[seed]: 0.6, NAMES[50 + seed]: 0.4}, None][seed]
    [alone] = deterministic.generate([CHAT], params, [mix])
    with Crowd(deterministic, NAMES[: 2 * RESIDENT], 15, seed=seed) as crowd:
        crowd.wait(10)
        [company] = deterministic.generate([CHAT], params, [mix])
    assert crowd.cancelled
    assert company.outputs == alone.outputs


def test_without_it_a_bit_may_change(smollm2: Path, many: AdapterStore) -> None:
    """What the test above would see."""
    params = SamplingParams(max_tokens=24, logprobs=5, ignore_eos=True)
    with LLM(smollm2, many.path, pool_pages=RESIDENT + 1) as llm:
        [alone] = llm.generate([CHAT], params, NAMES[0])
        company = llm.generate([CHAT] * 16, params, NAMES[:16])
    assert company[0].outputs != alone.outputs
