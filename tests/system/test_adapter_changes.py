"""Adapters that are unloaded, replaced and removed while streams use them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_jax import LLM
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import synthetic_manifest, synthetic_tensors
from openlora_jax.engine.request import GenerateRequest, MixItem
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import UnknownAdapter
from openlora_jax.outputs import Generation, collect
from tests.system.compare import GREEDY, assert_same

LONG = GREEDY.model_copy(update={"max_tokens": 240})
PROMPT = (5, 6, 7)
NAME = "changing"


@pytest.fixture
def changing(llm: LLM, store: Path) -> Iterator[AdapterStore]:
    """The store, with an adapter of its own for each test."""
    adapters = AdapterStore(store)
    _write(adapters, llm, seed=5000)
    yield adapters
    if NAME in adapters.registrations():
        adapters.remove(NAME)


def _write(adapters: AdapterStore, llm: LLM, seed: int) -> str:
    manifest = synthetic_manifest(llm.model, llm.base_digest, ["q_proj", "v_proj"], 8)
    tensors = synthetic_tensors(llm.model, ["q_proj", "v_proj"], 8, seed, scale=1.0)
    return adapters.install(NAME, manifest, tensors, replace=True)


def begun(llm: LLM) -> EventStream:
    """A stream that has shown its first token."""
    stream = llm.engine.submit(GenerateRequest(prompt_ids=PROMPT, params=LONG, mix=(MixItem(NAME),)))
    next(stream)
    return stream


def rest(stream: EventStream) -> Generation:
    result = collect(stream)
    assert isinstance(result, Generation)
    return result


def same_rest(found: Generation, whole: Generation) -> None:
    """Checks a stream whose first token was read before."""
    assert found.adapter_digests == whole.adapter_digests
    assert found.completion_tokens == whole.completion_tokens
    assert found.outputs[0].token_ids == whole.outputs[0].token_ids[1:]


def test_unload_waits_for_the_stream(llm: LLM, changing: AdapterStore) -> None:
    digest = changing.resolve(NAME)
    [before] = llm.generate([PROMPT], LONG, NAME)
    stream = begun(llm)
    llm.adapters.unload(digest)
    [status] = [adapter for adapter in llm.adapters.status() if adapter.digest == digest]
    assert (status.state, status.requests) == ("draining", 1)
    same_rest(rest(stream), before)
    assert digest not in [adapter.digest for adapter in llm.adapters.status()]
    [again] = llm.generate([PROMPT], LONG, NAME)
    assert_same(again, before)


def test_a_replaced_adapter_finishes_what_it_began(llm: LLM, changing: AdapterStore) -> None:
    [old] = llm.generate([PROMPT], LONG, NAME)
    stream = begun(llm)
    digest = _write(changing, llm, seed=5001)
    [new] = llm.generate([PROMPT], LONG, NAME)
    assert new.adapter_digests == (digest,) != old.adapter_digests
    assert new.outputs[0].token_ids != old.outputs[0].token_ids
    same_rest(rest(stream), old)
    _write(changing, llm, seed=5000)
    [back] = llm.generate([PROMPT], LONG, NAME)
    assert_same(back, old)


def test_a_removed_adapter_finishes_what_it_began(llm: LLM, changing: AdapterStore) -> None:
    [before] = llm.generate([PROMPT], LONG, NAME)
    stream = begun(llm)
    changing.remove(NAME)
    with pytest.raises(UnknownAdapter):
        llm.generate([PROMPT], LONG, NAME)
    same_rest(rest(stream), before)
