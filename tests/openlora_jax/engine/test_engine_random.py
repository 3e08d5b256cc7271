"""Whatever comes together, and whatever happens to the others: each answer is that of its request alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax.engine.request import GenerateRequest, Scored, ScoreRequest
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import AdapterUnavailable, DeadlineExceeded
from tests.openlora_jax.engine.answers import VOCAB, Answer, collect, expected_sample, expected_scores, text_of
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config

Fate = Literal["live", "cancel", "deadline"]
STEP = 0.1  # seconds
BROKEN = 4  # the adapter that never loads


@dataclass(frozen=True)
class Visit:
    """A request that comes at one iteration and is left to itself, or cancelled, or late, some iterations after.

    `params` are SamplingParams fields; None is a text to score.
    """

    arrival: int
    fate: Fate
    after: int
    prompt_len: int
    mix: dict[str, float]
    params: dict[str, Any] | None

    @property
    def request(self) -> GenerateRequest | ScoreRequest:
        deadline = STEP * (self.arrival + self.after) if self.fate == "deadline" else None
        prompt = ((3 * n + 1) % VOCAB for n in range(self.prompt_len))
        request = generate(prompt, self.mix, deadline=deadline, **(self.params or {}))
        if self.params is not None:
            return request
        return ScoreRequest(prompt_ids=request.prompt_ids, completion_ids=(7,) * 20, mix=request.mix, deadline=deadline)


VISITS = st.builds(
    Visit,
    arrival=st.integers(0, 30),
    fate=st.sampled_from(["live", "live", "live", "cancel", "deadline"]),
    after=st.integers(0, 20),
    prompt_len=st.integers(1, 60),
    mix=st.dictionaries(st.integers(1, 6).map("a{}".format), st.sampled_from([1.0, 0.5, -2.0]), max_size=2),
    params=st.none()
    | st.fixed_dictionaries(
        {
            "n": st.sampled_from([1, 1, 2, 4]),
            "seed": st.integers(0, 50),
            "max_tokens": st.integers(1, 60),
            "ignore_eos": st.booleans(),
            "stop": st.sampled_from([(), ("ab",), ("abcb", "ee")]),
            "stop_token_ids": st.sampled_from([(), (3, 50, 70)]),
        }
    ),
)


def play(bench: Bench, plan: list[Visit], loads: dict[int, int]) -> list[tuple[Visit, EventStream]]:
    """Lets everything happen at its iteration, then steps until nobody is left."""
    events: list[tuple[int, Callable[[], object]]] = []
    streams: list[tuple[Visit, EventStream]] = []

    def arrive(visit: Visit) -> None:
        stream = bench.submit(visit.request)
        streams.append((visit, stream))
        if visit.fate == "cancel":
            events.append((visit.arrival + visit.after, stream.cancel))

    events += [(visit.arrival, partial(arrive, visit)) for visit in plan]
    for number, iteration in loads.items():
        end = bench.adapters.fail_load if number == BROKEN else bench.adapters.finish_load
        events.append((iteration, partial(end, f"d{number}")))
    bench.clock.now = 0.0
    for iteration in range(5000):
        for due in [event for event in events if event[0] <= iteration]:
            events.remove(due)
            due[1]()
        busy = bench.engine.step()
        if not (busy or events or bench.engine._live):
            return streams
        bench.clock.now += STEP
    raise AssertionError("somebody waits for ever")


def judge(visit: Visit, answer: Answer) -> None:
    request = visit.request
    if isinstance(answer.error, AdapterUnavailable):
        assert f"a{BROKEN}" in [item.adapter for item in request.mix]
    elif answer.error is not None:
        assert isinstance(answer.error, DeadlineExceeded)
        assert visit.fate == "deadline"
    elif isinstance(answer.last, Scored):
        assert isinstance(request, ScoreRequest)
        assert list(zip(answer.last.logprobs, answer.last.greedy, strict=True)) == expected_scores(request)
    elif isinstance(request, ScoreRequest):
        assert answer.last is None
        assert visit.fate == "cancel"
    if not isinstance(request, GenerateRequest):
        return
    for index, sample in enumerate(answer.samples):
        expected = expected_sample(request, index)
        if sample.finish_reason in ("stop", "length"):
            assert sample == expected
        else:
            assert answer.error is not None or (sample.finish_reason, visit.fate) == ("cancelled", "cancel")
            assert expected.token_ids[: len(sample.token_ids)] == sample.token_ids
            assert text_of(sample.token_ids).startswith(sample.text)


@settings(max_examples=80, deadline=None)
@given(
    plan=st.lists(VISITS, min_size=1, max_size=12),
    loads=st.fixed_dictionaries({number: st.integers(0, 40) for number in range(1, 7)}),
    sizes=st.sampled_from([(16, 16), (16, 32), (32, 32)]),
    deterministic=st.booleans(),
)
def test_each_answer_is_that_of_its_request_alone(
    plan: list[Visit], loads: dict[int, int], sizes: tuple[int, int], deterministic: bool
) -> None:
    tile, kv_block = sizes
    blocks = 1 + (32 if deterministic else 12) * 16 // kv_block
    config = small_config(
        prefill_tile=tile, kv_block=kv_block, kv_blocks=blocks, work_items=24, deterministic=deterministic
    )
    bench = Bench(config, FakeAdapters(num_pages=6, automatic=False))
    streams = play(bench, plan, loads)
    bench.check_idle()
    assert len(streams) == len(plan)
    for visit, stream in streams:
        judge(visit, collect(stream))
