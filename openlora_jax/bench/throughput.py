"""`bench throughput`: one batch base-only, with adapters, with mixes of them; decode steps over their floor."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from openlora_jax.adapters.modules import MODULES, PAGE_RANK
from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.bench.floor import Floor
from openlora_jax.bench.samples import Samples
from openlora_jax.config import EngineConfig
from openlora_jax.engine.plan import StepPlan, Tile
from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.llm import LLM
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.progress import Progress

LINEAR_MODULES = tuple(module for module in MODULES if module not in ("embed_tokens", "lm_head"))
"""What the synthetic adapters target: all seven of them, the dearest case."""

BASE_ONLY = "base only"
"""The arm without adapters, which the others are compared with."""

STEPS = 8
"""Decode steps dispatched in a row, as the engine does, without waiting for each; a sample is their mean."""

GREEDY = RowSampling()
SAMPLED = RowSampling(
    temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.1, logprobs=5
)
"""All that a row can ask of the sampler."""

Step = TypeVar("Step")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What every arm runs.

    Attributes:
        requests: in one batch.
        prompt: tokens of each prompt, random.
        new: tokens generated for each, greedily.
        adapters: numbers of distinct adapters, an arm each; 0 is the base model alone.
        ranks: of the adapters, an arm each.
        members: adapters of each row's mix, an arm each; where it is not 1, each of so many mixes has its own.
        rounds: each runs every arm once.
    """

    requests: int = 16
    prompt: int = 64
    new: int = 64
    adapters: tuple[int, ...] = (0, 1, 16)
    ranks: tuple[int, ...] = (16,)
    members: tuple[int, ...] = (1,)
    rounds: int = 7


@runtime_checkable
class Peer(Protocol):
    """Another implementation of the same workload."""

    name: str

    def generate(self, prompts: Sequence[Sequence[int]], new: int, adapters: int) -> None:
        """Continues every prompt by `new` tokens with that many distinct adapters; 0 is the base model alone."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One cell of the grid; the base model has no rank."""

    adapters: int
    rank: int
    members: int = 1

    @property
    def name(self) -> str:
        if not self.adapters:
            return BASE_ONLY
        if self.members > 1:
            return f"{self.adapters} mix{'es' * (self.adapters > 1)} of {self.members}, rank {self.rank}"
        return f"{self.adapters} adapter{'s' * (self.adapters > 1)}, rank {self.rank}"

    def assign(self, requests: int) -> list[dict[str, float]]:
        """The mix of each request, evenly weighted: as evenly as it goes."""
        if not self.adapters:
            return [{}] * requests
        firsts = [self.members * (index % self.adapters) for index in range(requests)]
        return [
            {adapter_name(self.rank, first + member): 1 / self.members for member in range(self.members)}
            for first in firsts
        ]


@dataclass(frozen=True, slots=True)
class Results:
    """Tokens per second and milliseconds per decode step, by arm; the floor's and the peer's beside them.

    Attributes:
        greedy, sampled: a decode step of the base model alone, by how its rows choose; greedy is its arm's, if any.
    """

    throughput: dict[str, Samples]
    step: dict[str, Samples]
    floor: Samples
    greedy: Samples
    sampled: Samples
    peer: dict[str, Samples]


def adapter_name(rank: int, index: int) -> str:
    return f"r{rank}-{index}"


def arms(workload: Workload) -> list[Arm]:
    """The grid: the base model once, every number of adapters with every rank and number of members."""
    base = [Arm(0, 0)] * (0 in workload.adapters)
    return base + [
        Arm(count, rank, members)
        for members in workload.members
        for rank in workload.ranks
        for count in workload.adapters
        if count
    ]


def _distinct(workload: Workload) -> int:
    """Adapters of each rank."""
    return max(workload.adapters) * max(workload.members)


def install_adapters(store: Path, base: Path, workload: Workload) -> None:
    """Puts the grid's adapters into a store."""
    manifest = BaseManifest.read(base)
    for rank in workload.ranks:
        seeds = {adapter_name(rank, index): rank * 1000 + index for index in range(_distinct(workload))}
        if seeds:
            install_synthetic(
                AdapterStore(store), manifest.config, manifest.digest, seeds, modules=LINEAR_MODULES, rank=rank
            )


def settings(workload: Workload) -> EngineConfig:
    """An engine that holds the whole workload at once: nothing waits, nothing is evicted."""
    length = workload.prompt + workload.new
    blocks = -(-length // EngineConfig().kv_block)
    pages = sum(_distinct(workload) * -(-rank // PAGE_RANK) for rank in workload.ranks)
    return EngineConfig(
        max_rows=workload.requests,
        prefix_cache=False,  # every prompt is computed
        max_model_len=length,
        kv_blocks=1 + workload.requests * (blocks + 1),
        pool_pages=1 + pages,
        wide_pool_pages=1,
    )


def measure(llm: LLM, workload: Workload, peer: Peer | None, progress: Progress) -> Results:
    """Runs every arm, the floor and the peer once a round, in turn, after one round that is not counted."""
    generator = np.random.default_rng(0)
    prompts = generator.integers(0, llm.model.vocab_size, (workload.requests, workload.prompt)).tolist()
    grid = arms(workload)
    results = Results(
        throughput={arm.name: Samples(arm.name, "tok/s") for arm in grid},
        step={arm.name: Samples(arm.name, "ms") for arm in grid},
        floor=Samples("floor", "ms"),
        greedy=Samples("greedy", "ms"),
        sampled=Samples("sampled", "ms"),
        peer={arm.name: Samples(arm.name, "tok/s") for arm in grid} if peer else {},
    )
    floor = Floor(llm.model, llm.runner.parameters, workload.requests)
    base_step_ms = partial(decode_step_ms, llm, [{}] * workload.requests, _middle(workload))
    tokens = workload.requests * workload.new
    for round_number in range(-1, workload.rounds):
        progress("warm-up" if round_number < 0 else f"round {round_number + 1}", round_number + 1, workload.rounds + 1)
        floor_ms = _step_ms(floor.dispatch, jax.block_until_ready)
        sampled = base_step_ms(SAMPLED)
        taken = [_round(llm, arm, prompts, workload, peer) for arm in grid]
        if round_number < 0:
            continue
        results.floor.values.append(floor_ms)
        results.sampled.values.append(sampled)
        for arm, (seconds, step_ms, peer_seconds) in zip(grid, taken, strict=True):
            results.throughput[arm.name].values.append(tokens / seconds)
            results.step[arm.name].values.append(step_ms)
            if peer:
                results.peer[arm.name].values.append(tokens / peer_seconds)
        base = results.step.get(BASE_ONLY)
        results.greedy.values.append(base.values[-1] if base else base_step_ms(GREEDY))
    progress("done", workload.rounds + 1, workload.rounds + 1)
    return results


def _round(
    llm: LLM, arm: Arm, prompts: list[list[int]], workload: Workload, peer: Peer | None
) -> tuple[float, float, float]:
    """Seconds of the batch, milliseconds of a decode step in the middle of it, seconds of the peer's batch."""
    params = SamplingParams(max_tokens=workload.new, ignore_eos=True)
    mixes = arm.assign(workload.requests)
    seconds = _seconds(lambda: llm.generate(prompts, params, mixes))
    peer_seconds = _seconds(lambda: peer.generate(prompts, workload.new, arm.adapters)) if peer else 0.0
    return seconds, decode_step_ms(llm, mixes, _middle(workload)), peer_seconds


def _middle(workload: Workload) -> int:
    """Tokens that a row has behind it, halfway through."""
    return workload.prompt + workload.new // 2


def decode_step_ms(
    llm: LLM, mixes: Sequence[Mapping[str, float]], position: int, sampling: RowSampling = GREEDY
) -> float:
    """A decode step of the idle engine's runner, so many tokens in; the adapters are resident from a batch before."""
    digests = {name: llm.store.resolve(name) for mix in mixes for name in mix}
    leases = dict(zip(digests, llm.adapters.acquire(*digests.items()), strict=True))
    try:
        llm.adapters.place(*leases.values())
        pages = [tuple((leases[name].pages, weight) for name, weight in mix.items()) for mix in mixes]
        plan = _decode_plan(llm.config, pages, position, sampling)
        return _step_ms(lambda: llm.runner.run(plan), lambda step: step.read())
    finally:
        for lease in leases.values():
            lease.release()


def _decode_plan(
    config: EngineConfig,
    pages: Sequence[tuple[tuple[AdapterPages, float], ...]],
    position: int,
    sampling: RowSampling,
) -> StepPlan:
    width = position // config.kv_block + 1
    return StepPlan(
        "decode",
        tuple(
            Tile(row, position, None, range(1 + row * width, 1 + (row + 1) * width), mix, sampling)
            for row, mix in enumerate(pages)
        ),
    )


def _step_ms(dispatch: Callable[[], Step], wait: Callable[[Step], object]) -> float:
    def run() -> None:
        for _ in range(STEPS):
            last = dispatch()
        wait(last)

    wait(dispatch())
    return 1000 * _seconds(run) / STEPS


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
