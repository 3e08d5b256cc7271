"""The whole library on a tiny random model: real parts, from the directory on disk to the answer."""

import itertools
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from openlora_jax import LLM, SamplingParams, SchedulingParams, ensemble
from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.engine.request import GenerateRequest, MixItem, TokenLogprobs
from openlora_jax.engine.sampling import SamplerState
from openlora_jax.errors import (
    AdapterOutOfMemory,
    AdapterUnavailable,
    EngineStopped,
    InvalidConfig,
    InvalidRequest,
    NotFinite,
    OpenLoraError,
    UnknownAdapter,
)
from openlora_jax.inputs import Adapter, Prompt
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.observed import Observed, observed_path
from openlora_jax.outputs import Generation, collect
from openlora_jax.quantization.format import Quantization
from pallas_kernels.kv_cache import KvCache
from tests.openlora_jax.adapters.poison import write_that_fails_when_it_runs, write_that_takes_the_pool_with_it
from tests.openlora_jax.test_tokenizer import byte_level, write_base
from tests.openlora_jax.tiny import DIGEST, MODEL, SETTINGS

PROMPTS: list[Prompt] = ["hello", [5, 6, 7], [{"role": "user", "content": "hi"}], "the sea is", "a", [9] * 40]
ADAPTERS: list[Adapter] = ["one", None, {"one": 0.5, "two": -0.5}, "two", {"two": 1.0}, {"one": 2.0}]
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=3)


def test_a_mixed_batch_answers_as_each_row_alone(tiny_llm: LLM) -> None:
    completions = ["hell"] * len(PROMPTS)
    together = tiny_llm.score(PROMPTS, completions, ADAPTERS)
    for prompt, adapter, scored in zip(PROMPTS, ADAPTERS, together, strict=True):
        [alone] = tiny_llm.score([prompt], ["hell"], adapter)
        np.testing.assert_allclose(scored.logprobs, alone.logprobs, atol=1e-4)
        assert scored.adapter_digests == alone.adapter_digests
        [base] = tiny_llm.score([prompt], ["hell"])
        moved = np.abs(np.subtract(scored.logprobs, base.logprobs)).max()
        assert moved == 0 if adapter is None else moved > 0.1


def test_what_was_generated_scores_the_same(tiny_llm: LLM) -> None:
    answers = tiny_llm.generate(PROMPTS, GREEDY, ADAPTERS)
    ids = [answer.outputs[0].token_ids for answer in answers]
    for answer, scored in zip(answers, tiny_llm.score(PROMPTS, ids, ADAPTERS), strict=True):
        [sample] = answer.outputs
        assert sample.finish_reason == "length"
        assert (len(sample.token_ids), answer.completion_tokens) == (8, 8)
        assert sample.text == tiny_llm.tokenizer.decode(sample.token_ids)
        np.testing.assert_allclose([token.logprob for token in sample.logprobs], scored.logprobs, atol=1e-4)
        assert all(next(iter(token.top)) == token.token_id for token in sample.logprobs)
        assert all(scored.greedy)


def test_a_seed_reproduces_in_any_company(tiny_llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=8, n=2, ignore_eos=True)
    [first] = tiny_llm.generate("hello", params, "one")
    again = params.model_copy(update={"seed": first.seed})
    others = SamplingParams(temperature=2.0, max_tokens=12)
    answers = tiny_llm.generate(["a", "hello", "b"], [others, again, others], ["two", "one", None])
    assert [sample.token_ids for sample in answers[1].outputs] == [sample.token_ids for sample in first.outputs]
    assert first.outputs[0].token_ids != first.outputs[1].token_ids


def test_a_remote_store_needs_a_local_one(tiny_base: Path, tiny_store: Path) -> None:
    with pytest.raises(InvalidConfig, match="local store"):
        LLM(tiny_base, remote=str(tiny_store), **SETTINGS)


def test_a_start_that_fails_lets_the_next_one_fetch(
    tiny_base: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = AdapterStore.create(tmp_path / "near")

    def refuse(*arguments: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("openlora_jax.llm.plan_start", refuse)
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            LLM(tiny_base, near.path, remote=f"file://{tiny_store}", **SETTINGS)
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.slow
def test_adapters_of_another_store_are_fetched(
    tiny_base: Path, tiny_store: Path, tiny_llm: LLM, tmp_path: Path
) -> None:
    near = AdapterStore.create(tmp_path / "near")
    with LLM(tiny_base, near.path, remote=f"file://{tiny_store}", **SETTINGS) as llm:
        [answer] = llm.generate("a", GREEDY, "one")
        [expected] = tiny_llm.generate("a", GREEDY, "one")
        assert answer.adapter_digests == expected.adapter_digests
        assert answer.outputs[0].token_ids == expected.outputs[0].token_ids
        counts = llm.adapters.counters.snapshot()
    assert (counts.loads["remote", "ok"], counts.loads["disk", "ok"]) == (1, 1)
    assert not near.registrations()


def test_what_is_not_finite_ends_its_request_alone(tiny_llm: LLM, tiny_store: Path) -> None:
    store = AdapterStore(tiny_store)
    install_synthetic(store, MODEL, DIGEST, {"huge": 3}, scale=3e36)
    [expected] = tiny_llm.generate("a", GREEDY, "one")
    good = tiny_llm.engine.submit(GenerateRequest(prompt_ids=(5,), params=GREEDY, mix=(MixItem("one"),)))
    with pytest.raises(NotFinite, match=r"1e\+06 'huge' is not finite"):
        tiny_llm.generate("a", GREEDY, {"huge": 1e6})
    with pytest.raises(NotFinite):
        tiny_llm.score("a", "b", {"huge": 1e6})
    assert isinstance(collect(good), Generation)
    assert tiny_llm.generate("a", GREEDY, "one")[0].outputs == expected.outputs
    store.remove("huge")


def test_a_weight_is_any_finite_number(tiny_llm: LLM, tiny_store: Path) -> None:
    store = AdapterStore(tiny_store)
    install_synthetic(store, MODEL, DIGEST, {"faint": 1}, scale=1e-9)
    faint, one = tiny_llm.score(["a"] * 2, ["bcd"] * 2, [{"faint": 1e9}, "one"])
    np.testing.assert_allclose(faint.logprobs, one.logprobs, atol=1e-4)
    with pytest.raises(NotFinite, match=r"3e\+38 'one' is not finite"):
        tiny_llm.generate("a", GREEDY, {"one": 3e38})
    store.remove("faint")


@pytest.mark.parametrize("program", ["_prefill", "_decode"])
def test_a_step_that_fails_takes_its_requests_and_no_later_one(
    tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    [expected] = tiny_llm.generate("hello", GREEDY, "one")
    runner = tiny_llm.runner

    def fails(parameters: object, state: SamplerState, kv: KvCache, *rest: object) -> None:
        monkeypatch.undo()
        for array in jax.tree.leaves((state, kv)):
            array.delete()  # as a call that takes its arguments' memory over and then fails
        raise RuntimeError("the device is unwell")

    monkeypatch.setattr(runner, program, fails)
    with pytest.raises(EngineStopped, match="a step failed on the device"):
        tiny_llm.generate("hello", GREEDY, "one")
    assert tiny_llm.generate("hello", GREEDY, "one")[0].outputs == expected.outputs


@pytest.mark.parametrize(
    ("write", "error"),
    [(write_that_fails_when_it_runs, EngineStopped), (write_that_takes_the_pool_with_it, AdapterOutOfMemory)],
)
def test_a_page_write_that_fails_takes_its_requests_and_no_later_one(
    tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch, write: Any, error: type[OpenLoraError]
) -> None:
    monkeypatch.setattr(tiny_llm.adapters, "_prefetch", None)  # idle time writes pages too
    expected = tiny_llm.generate(["hello"] * 2, GREEDY, ["one", "two"])
    pool = tiny_llm.runner.pool
    works = pool._write

    def fails(*operands: Any) -> Any:
        pool._write = works
        return write(*operands)

    for attempt in ("one", "two"):
        digest = tiny_llm.store.resolve(attempt)
        tiny_llm.adapters.unload(digest)
        monkeypatch.setattr(pool, "_write", fails)
        with pytest.raises(error):
            tiny_llm.generate("hello", GREEDY, attempt)
        tiny_llm.adapters.unload(digest)
        found = tiny_llm.generate(["hello"] * 2, GREEDY, ["one", "two"])
        assert [answer.outputs for answer in found] == [answer.outputs for answer in expected]
    tiny_llm.adapters.validate()


def test_adapters_come_mix_and_go_without_tracing_a_program_again(tiny_llm: LLM, tiny_store: Path) -> None:
    """The fixture counts: a program that is traced again fails its step, and so its request."""
    store = AdapterStore(tiny_store)
    for rank, modules in ((1, ("o_proj",)), (17, MODULES), (64, ("q_proj", "down_proj"))):
        install_synthetic(store, MODEL, DIGEST, {"visitor": rank}, rank=rank, modules=modules)
        tiny_llm.generate(["hello"] * 3, GREEDY, ["visitor", None, {"one": 0.5, "visitor": -2.0}])
        tiny_llm.score(["hello"] * 2, ["a", "b"], ["visitor", {"visitor": 0.1, "two": 1.0}])
        store.remove("visitor")


def test_digests_name_what_answered(tiny_llm: LLM) -> None:
    answers = tiny_llm.generate(["a"] * 3, GREEDY, [None, "two", {"two": 0.5, "one": 0.5}])
    one, two = (tiny_llm.store.resolve(name) for name in ("one", "two"))
    assert [answer.adapter_digests for answer in answers] == [(), (two,), (two, one)]


def test_an_ensemble_is_its_members_taken_together(tiny_llm: LLM) -> None:
    """What needs no other model: members that are alike, a weight of 1 among zeros, one batch with others, `n`."""
    pair: list[Adapter] = ["one", None]
    alike, first, second, both, plain = tiny_llm.generate(
        ["hello"] * 5,
        GREEDY,
        [
            ensemble(["one"] * 3),
            ensemble(pair, [1.0, 0.0], "mean_probs"),
            ensemble(pair, [0.0, 1.0]),
            ensemble(pair),
            "one",
        ],
    )
    [base] = tiny_llm.generate("hello", GREEDY)
    for answer, alone in ((alike, plain), (first, plain), (second, base)):
        assert answer.outputs[0].token_ids == alone.outputs[0].token_ids
        expected = [token.logprob for token in alone.outputs[0].logprobs]
        np.testing.assert_allclose([token.logprob for token in answer.outputs[0].logprobs], expected, atol=1e-4)
    assert both.adapter_digests == plain.adapter_digests
    assert both.outputs[0].logprobs != plain.outputs[0].logprobs
    drawn = SamplingParams(temperature=1.5, max_tokens=8, n=2, seed=11, repetition_penalty=1.3, ignore_eos=True)
    [company, _] = tiny_llm.generate(["hello", "a"], drawn.model_copy(update={"n": 2}), ensemble(pair))
    [again] = tiny_llm.generate("hello", drawn, ensemble(pair))
    assert company.outputs == again.outputs
    assert again.outputs[0].token_ids != again.outputs[1].token_ids


def test_an_ensemble_that_has_to_give_way_goes_on_as_if_it_had_not(tiny_llm: LLM) -> None:
    params = SamplingParams(max_tokens=100, ignore_eos=True, repetition_penalty=1.2)
    members = ensemble(["one", None, "two"], [0.8, 0.1, 0.1], "mean_probs")
    [expected] = tiny_llm.generate([[5, 6, 7]], params, members)
    low, high = SchedulingParams(priority="low"), SchedulingParams(priority="high")
    before = tiny_llm.engine.stats.preemptions
    events = tiny_llm.engine.submit(
        GenerateRequest(prompt_ids=(5, 6, 7), params=params, ensemble=members, scheduling=low)
    )
    first = next(events)
    tiny_llm.generate(["a"], GREEDY.model_copy(update={"n": 2}), scheduling=high)
    rest = collect(itertools.chain([first], events))
    assert tiny_llm.engine.stats.preemptions - before == 3, "all rows at once"
    assert isinstance(rest, Generation)
    assert rest.outputs[0].token_ids == expected.outputs[0].token_ids


def test_an_ensemble_with_a_member_that_is_not_finite_ends_alone(tiny_llm: LLM, tiny_store: Path) -> None:
    store = AdapterStore(tiny_store)
    install_synthetic(store, MODEL, DIGEST, {"huge": 3}, scale=3e36)
    good = tiny_llm.engine.submit(GenerateRequest(prompt_ids=(5,), params=GREEDY, mix=(MixItem("one"),)))
    with pytest.raises(NotFinite, match=r"the base model with 1e\+06 'huge' is not finite"):
        tiny_llm.generate("a", GREEDY, ensemble([None, {"huge": 1e6}]))
    assert isinstance(collect(good), Generation)
    store.remove("huge")


def test_a_weight_that_changes_between_turns_meets_no_stale_cache(tiny_llm: LLM) -> None:
    def turn(prompt: list[int], weight: float, tenant: str = "talk") -> tuple[tuple[TokenLogprobs, ...], int]:
        before = tiny_llm.engine.stats.cached_tokens
        mix, scheduling = {"one": weight, "two": 1 - weight}, SchedulingParams(tenant=tenant)
        [answer] = tiny_llm.generate([prompt], GREEDY, mix, scheduling=scheduling)
        return answer.outputs[0].logprobs, tiny_llm.engine.stats.cached_tokens - before

    said = [5 + token % 90 for token in range(40)]
    first, found = turn(said, 0.2)
    assert found == 0
    said += [token.token_id for token in first] + [7, 8]
    for weight, cached in ((0.8, 0), (0.2, 32), (0.8, 48)):
        tokens, found = turn(said, weight)
        fresh, nothing = turn(said, weight, tenant=f"{weight} {cached}")
        assert (found, nothing) == (cached, 0)
        np.testing.assert_allclose([t.logprob for t in tokens], [t.logprob for t in fresh], atol=1e-4)
    moved = np.subtract([t.logprob for t in turn(said, 0.2)[0]], [t.logprob for t in tokens])
    assert np.abs(moved).max() > 0.1


def test_a_named_mix_answers_as_its_members(tiny_llm: LLM, tiny_store: Path) -> None:
    store = AdapterStore(tiny_store)
    store.mix("both", {"two": 0.5, "one": -0.5})
    named, spelt = tiny_llm.generate(["a"] * 2, GREEDY, ["both", {"two": 0.5, "one": -0.5}])
    half, quarter = tiny_llm.score(["a"] * 2, ["hello"] * 2, [{"both": 0.5}, {"two": 0.25, "one": -0.25}])
    assert (named.outputs, named.adapter_digests) == (spelt.outputs, spelt.adapter_digests)
    assert (half.logprobs, half.adapter_digests) == (quarter.logprobs, quarter.adapter_digests)
    assert half.logprobs != tiny_llm.score("a", "hello", "both")[0].logprobs
    store.remove("both")
    with pytest.raises(UnknownAdapter, match="'both'"):
        tiny_llm.generate("a", GREEDY, "both")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": ["a", "b"], "adapters": ["one"]}, InvalidRequest, "adapters: has 1 entries for 2 prompts"),
        ({"prompts": ["a"], "params": [GREEDY, GREEDY]}, InvalidRequest, "params: has 2 entries for 1 prompts"),
        ({"prompts": ["a", "b"], "adapters": ["one", "none"]}, UnknownAdapter, "'none'"),
        ({"prompts": ["a", [300]]}, InvalidRequest, "outside the vocabulary"),
        ({"prompts": ["a", []]}, InvalidRequest, "empty"),
        ({"prompts": ["a", [1] * 128]}, InvalidRequest, "leave no room"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    tiny_llm: LLM, arguments: dict[str, Any], error: type[OpenLoraError], message: str
) -> None:
    steps = tiny_llm.engine.stats.steps
    with pytest.raises(error, match=message):
        tiny_llm.generate(**arguments)
    assert tiny_llm.engine.stats.steps == steps


def test_completions_are_one_each(tiny_llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="completions: has 1 entries for 2 prompts"):
        tiny_llm.score(["a", "b"], ["c"])


def test_more_requests_than_rows_and_closing_early(tiny_llm: LLM) -> None:
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    results = tiny_llm.run([GenerateRequest(prompt_ids=(3, 4), params=params) for _ in range(40)])
    next(results)
    results.close()
    deadline = time.monotonic() + 10
    while tiny_llm.engine.stats.running and time.monotonic() < deadline:
        time.sleep(0.01)
    stats = tiny_llm.engine.stats
    assert (stats.running, stats.waiting, stats.free_kv_blocks) == (0, 0, stats.kv_blocks)


def test_facts(tiny_llm: LLM) -> None:
    assert (tiny_llm.model, tiny_llm.base_digest, tiny_llm.backend) == (MODEL, DIGEST, "cpu")
    assert tiny_llm.config.max_model_len == MODEL.max_position, "no more than the model has"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 129}, "128 positions"),
        ({"backend": "cuda"}, "backend 'cuda'"),
        ({"max_rowz": 3}, "max_rowz"),
    ],
)
def test_settings_that_cannot_work(tiny_base: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        LLM(tiny_base, **settings)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"head_dim": 130}, "paged_attention: heads are 130 wide"),
        (
            {
                "vocab_size": (1 << 16) + 16,
                "hidden_size": 1 << 15,
                "quantization": Quantization(format="int8", group=32),
            },
            "quantized_linear: codes of a matrix: 2,148,007,936 bytes; must be less than 2,147,483,649",
        ),
    ],
)
def test_a_model_that_a_kernel_does_not_take_is_refused_before_its_weights_are_read(
    tmp_path: Path, sizes: dict[str, Any], problem: str
) -> None:
    write_base(tmp_path, byte_level())
    BaseManifest(config=replace(MODEL, **sizes), dtype="float32", digest=DIGEST, source="none").write(tmp_path)
    with pytest.raises(InvalidConfig, match=rf"backend .interpret. .*: {problem}"):
        LLM(tmp_path, backend="interpret")


def test_a_config_stands_alone(tiny_base: Path, tiny_llm: LLM) -> None:
    with pytest.raises(InvalidConfig, match="max_rows: is given beside"):
        LLM(tiny_base, config=tiny_llm.config, max_rows=3)


@pytest.mark.slow
def test_without_a_store_only_the_base_answers(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "openlora_jax"), LLM(tiny_base, **SETTINGS) as llm:
        assert f"device memory: {llm.plan}" in caplog.text
        assert set(llm.plan.pages.values()) == {1, SETTINGS["wide_pool_pages"]}, "no room for adapters there are not"
        assert llm.generate("a", GREEDY)[0].adapter_digests == ()
        with pytest.raises(InvalidConfig, match="no adapter 'one'"):
            llm.generate("a", GREEDY, "one")
    with pytest.raises(OpenLoraError, match="stopped"):
        llm.generate("a", GREEDY)


@pytest.mark.slow
def test_a_start_plans_for_what_is_registered_and_was_asked_for(tiny_base: Path, tmp_path: Path) -> None:
    """First nobody targets the head; one who does is refused until the next start, which has room for it."""
    store = AdapterStore.create(tmp_path)
    settings = {key: value for key, value in SETTINGS.items() if key != "wide_pool_pages"}
    install_synthetic(store, MODEL, DIGEST, {"one": 1}, scale=1.0)
    with LLM(tiny_base, tmp_path, **settings, remember=True) as llm:
        before = llm.plan
        assert before.pages["lm_head"] == 1
        install_synthetic(store, MODEL, DIGEST, {"headed": 2}, modules=("lm_head",), rank=40, scale=1.0)
        with pytest.raises(AdapterUnavailable, match=r"3 pages of lm_head .* give 0; .* start again, which plans for"):
            llm.generate("a", GREEDY, "headed")
        llm.generate(["a"] * 9, GREEDY, "one")
    observed = Observed.read(observed_path(tmp_path, DIGEST), DIGEST)
    assert observed.uses == {store.resolve("one"): 9, store.resolve("headed"): 1}
    assert observed.kv_tokens > 0
    with LLM(tiny_base, tmp_path, **settings, remember=True) as llm:
        assert llm.plan.pages["lm_head"] >= 4
        assert llm.plan.total <= before.total + 4 * before.pools["lm_head"]
        assert llm.generate("a", GREEDY, "headed")[0].adapter_digests == (store.resolve("headed"),)
    assert Observed.read(observed_path(tmp_path, DIGEST), DIGEST).uses[store.resolve("one")] == 4


@pytest.mark.slow
def test_what_cannot_be_kept_is_no_error(
    tiny_base: Path, tiny_store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Observed, path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Observed, "write", refuse)
    with LLM(tiny_base, tiny_store, **SETTINGS, remember=True):
        pass
    assert "the next start cannot plan by this one" in caplog.text
