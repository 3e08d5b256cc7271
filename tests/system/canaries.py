"""Adapters whose answers tell who they are, and clients who ask for them while they come, go and change names."""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from openlora_jax import LLM, SamplingParams
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.engine.request import Delta, GenerateRequest, MixItem
from openlora_jax.outputs import Generation, collect
from tests.system.compare import BOUND, assert_same

PROMPTS = ((5, 6, 7), tuple(range(20, 60)))
SHORT = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=2)
Answers = dict[tuple[str, tuple[int, ...]], Generation]
"""Of each digest to each prompt."""


def answers_alone(llm: LLM, names: list[str]) -> Answers:
    """What each adapter says when nobody else asks; no two of them say the same."""
    answers: Answers = {}
    for name in names:
        for prompt in PROMPTS:
            [answer] = llm.generate([prompt], SHORT, name)
            answers[answer.adapter_digests[0], prompt] = answer
    for prompt in PROMPTS:
        first = sorted(
            answer.outputs[0].logprobs[0].logprob for (_, asked), answer in answers.items() if asked == prompt
        )
        assert len(first) == len(names)
        assert min(b - a for a, b in pairwise(first)) > BOUND
    return answers


@dataclass
class Churn:
    """So many clients until `responses` answers are checked. Any of them raises what went wrong.

    Attributes:
        done: what was done, by kind.
    """

    llm: LLM
    store: AdapterStore
    names: list[str]
    answers: Answers
    responses: int
    done: Counter[str] = field(default_factory=Counter)

    def run(self, clients: int, seed: int) -> None:
        self._naming = threading.Lock()
        self._counting = threading.Lock()
        self._digests = sorted({digest for digest, _ in self.answers})
        self._failures: list[BaseException] = []
        threads = [threading.Thread(target=self._live, args=(random.Random(f"{seed}/{i}"),)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _live(self, chance: random.Random) -> None:
        kinds = (self._ask, self._cancel, self._replace, self._unload, self._load)
        try:
            while self.done["ask"] < self.responses and not self._failures:
                [act] = chance.choices(kinds, (80, 10, 3, 4, 3))
                act(chance)
                with self._counting:
                    self.done[act.__name__.strip("_")] += 1
        except BaseException as failure:
            self._failures.append(failure)

    def _ask(self, chance: random.Random) -> None:
        name, prompt = chance.choice(self.names), chance.choice(PROMPTS)
        with self._naming:
            digest = self.store.resolve(name)
            stream = self.llm.engine.submit(GenerateRequest(prompt_ids=prompt, params=SHORT, mix=(MixItem(name),)))
        answer = collect(stream)
        assert isinstance(answer, Generation)
        assert answer.adapter_digests == (digest,)
        assert_same(answer, self.answers[digest, prompt])

    def _cancel(self, chance: random.Random) -> None:
        name, patience = chance.choice(self.names), chance.choice((0, 0, 1))
        stream = self.llm.engine.submit(GenerateRequest(prompt_ids=PROMPTS[0], params=SHORT, mix=(MixItem(name),)))
        if not patience:
            stream.cancel()
        for event in stream:
            if isinstance(event, Delta):
                stream.cancel()

    def _replace(self, chance: random.Random) -> None:
        with self._naming:
            self.store.register({chance.choice(self.names): chance.choice(self._digests)}, replace=True)

    def _unload(self, chance: random.Random) -> None:
        self.llm.adapters.unload(chance.choice(self._digests))

    def _load(self, chance: random.Random) -> None:
        name = chance.choice(self.names)
        self.llm.adapters.load(name, self.store.resolve(name))
