"""Other people's requests: they come, go, are cancelled, want other adapters, and never the same twice."""

import random
import threading
import time
from collections.abc import Sequence
from typing import Self

from openlora_jax import LLM, SamplingParams
from openlora_jax.engine.request import Delta, GenerateRequest, MixItem, ScoreRequest


class Crowd:
    """So many threads, each with one request after the other, until the crowd leaves. Raises what went wrong in it.

    Attributes:
        finished, cancelled: requests that ended so.
    """

    def __init__(self, llm: LLM, names: Sequence[str], size: int, seed: int) -> None:
        self.finished = self.cancelled = 0
        self._llm = llm
        self._names = names
        self._leaving = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._live, args=(random.Random(f"{seed}/{index}"),)) for index in range(size)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leaving.set()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def wait(self, requests: int) -> None:
        """Until so many more requests have ended."""
        goal = self.finished + self.cancelled + requests
        while self.finished + self.cancelled < goal and self._failure is None:
            time.sleep(0.005)

    def _live(self, chance: random.Random) -> None:
        try:
            while not self._leaving.is_set():
                self._ask(chance)
        except BaseException as failure:
            self._failure = failure

    def _ask(self, chance: random.Random) -> None:
        stream = self._llm.engine.submit(self._request(chance))
        patience = chance.choice((0, 1, 5, 1000))
        for count, event in enumerate(stream):
            if count == patience and isinstance(event, Delta):
                stream.cancel()
        self.finished += not stream.cancelled
        self.cancelled += stream.cancelled

    def _request(self, chance: random.Random) -> GenerateRequest | ScoreRequest:
        prompt = tuple(chance.choices(range(3, 250), k=chance.randint(1, 90)))
        mix = tuple(
            MixItem(name, chance.uniform(-1, 1)) for name in chance.sample(self._names, chance.choice((0, 1, 1, 2)))
        )
        if chance.random() < 0.1:
            return ScoreRequest(prompt_ids=prompt, completion_ids=prompt[::-1], mix=mix)
        return GenerateRequest(prompt_ids=prompt, params=_params(chance), mix=mix)


def _params(chance: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=chance.randint(1, 40),
        temperature=chance.choice((0.0, 0.5, 1.5)),
        top_k=chance.choice((0, 5, 100)),
        top_p=chance.choice((1.0, 0.8)),
        min_p=chance.choice((0.0, 0.05)),
        presence_penalty=chance.choice((0.0, 1.0)),
        repetition_penalty=chance.choice((1.0, 1.3)),
        logit_bias=chance.choice(({}, {7: 5.0})),
        logprobs=chance.choice((None, 0, 5)),
        n=chance.choice((1, 1, 3)),
        seed=chance.choice((None, 11)),
        ignore_eos=chance.random() < 0.5,
    )
