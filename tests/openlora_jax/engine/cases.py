"""Requests of every kind, and what each must be answered with."""

from collections.abc import Callable

from openlora_jax.engine.request import GenerateRequest, MixItem, ScoreRequest
from tests.openlora_jax.engine.answers import Answer, collect, expected_sample
from tests.openlora_jax.engine.fakes import Bench, generate

REQUESTS = {
    "one token": generate([5], max_tokens=1),
    "base": generate([5, 6, 7], max_tokens=20),
    "tile border": generate(range(1, 17), max_tokens=20),
    "chunk border": generate(range(1, 33), max_tokens=2),
    "several chunks": generate((n % 90 for n in range(100)), max_tokens=20),
    "adapter": generate([5, 6, 7], {"a3": 1.0}),
    "mix": generate([5, 6, 7], {"a3": 0.5, "a5": -1.5}),
    "seed": generate([5, 6, 7], seed=123, temperature=1.0),
    "n": generate(range(1, 12), n=4, max_tokens=40),
    "n over blocks": generate(range(1, 40), {"a2": 1.0}, n=3, max_tokens=30),
    "n at a block border": generate(range(1, 33), n=2, max_tokens=30),
    "eos": generate([5, 6, 4], ignore_eos=False, max_tokens=90),
    "stop id": generate([5, 6, 7], stop_token_ids=(12, 24, 36, 48, 60, 72, 84), max_tokens=90),
    "min tokens": generate([5, 6, 7], stop_token_ids=range(0, 97, 7), min_tokens=30, max_tokens=90),
    "stop string": generate([5, 6, 7], stop=("abc", "eab", "cc"), max_tokens=90),
    "min tokens, stop string": generate([5, 6, 7], stop=("ab",), min_tokens=30, max_tokens=90),
}

SCORES = {
    "one of each": ScoreRequest(prompt_ids=(5,), completion_ids=(6,)),
    "first tile": ScoreRequest(prompt_ids=(5, 6), completion_ids=(7, 8, 9)),
    "completion begins with a tile": ScoreRequest(prompt_ids=tuple(range(16)), completion_ids=tuple(range(20))),
    "completion begins a position later": ScoreRequest(prompt_ids=tuple(range(17)), completion_ids=tuple(range(20))),
    "prompt of several chunks": ScoreRequest(prompt_ids=tuple(range(70)), completion_ids=tuple(range(40))),
    "mix": ScoreRequest(prompt_ids=(5,), completion_ids=(6, 7), mix=(MixItem("a1", 0.5), MixItem("a2", 2.0))),
}


def answer_of(request: GenerateRequest | ScoreRequest, bench: Bench) -> Answer:
    """The answer to one request alone."""
    stream = bench.submit(request)
    bench.settle()
    bench.check_idle()
    return collect(stream)


def check(request: GenerateRequest, answer: Answer) -> None:
    assert answer.error is None
    assert answer.samples == [expected_sample(request, index) for index in range(request.params.n)]


def until(condition: Callable[[], bool], bench: Bench) -> None:
    for _ in range(1000):
        if condition():
            return
        bench.engine.step()
    raise AssertionError("it never came true")
