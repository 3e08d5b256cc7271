"""The benchmark on a small model: every arm, the floor and a peer are measured in every round."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_jax.bench import report
from openlora_jax.bench.samples import Samples
from openlora_jax.bench.throughput import Results, Workload, arms, install_adapters, measure, settings
from openlora_jax.llm import LLM

WORKLOAD = Workload(requests=3, prompt=5, new=4, adapters=(0, 1, 3), ranks=(4, 20), members=(1, 2), rounds=2)


class CountingPeer:
    name = "counting"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], new: int, adapters: int) -> None:
        assert (len(prompts), new) == (WORKLOAD.requests, WORKLOAD.new)
        self.calls.append(adapters)


def test_the_grid_has_the_base_model_once_and_every_count_with_every_rank() -> None:
    assert [(arm.adapters, arm.rank) for arm in arms(WORKLOAD)][:5] == [(0, 0), (1, 4), (3, 4), (1, 20), (3, 20)]
    assert [(arm.adapters, arm.rank, arm.members) for arm in arms(WORKLOAD)][5:] == [
        (1, 4, 2),
        (3, 4, 2),
        (1, 20, 2),
        (3, 20, 2),
    ]
    one, two, _, one_again = arms(WORKLOAD)[2].assign(4)
    assert (one, two, one_again) == ({"r4-0": 1.0}, {"r4-1": 1.0}, one)
    assert arms(WORKLOAD)[6].assign(3)[1:] == [{"r4-2": 0.5, "r4-3": 0.5}, {"r4-4": 0.5, "r4-5": 0.5}]


def test_every_arm_is_measured_in_every_round(tiny_base: Path, tmp_path: Path) -> None:
    install_adapters(tmp_path, tiny_base, WORKLOAD)
    peer = CountingPeer()
    one_program_of_each_kind = {"row_buckets": (3,), "prefill_chunk": 32, "chunk_buckets": (32,)}
    with LLM(tiny_base, tmp_path, config=settings(WORKLOAD).model_copy(update=one_program_of_each_kind)) as llm:
        results = measure(llm, WORKLOAD, peer, lambda stage, done, total: None)
        setup = report.setup(llm, WORKLOAD, peer.name)
        one_arm = replace(WORKLOAD, adapters=(1,), ranks=(4,), members=(1,))
        without_base = measure(llm, one_arm, None, lambda stage, done, total: None)
    by_arm = [*results.throughput.values(), *results.step.values(), *results.peer.values()]
    measured = [*by_arm, results.floor, results.greedy, results.sampled]
    assert len(measured) == 3 * 9 + 3
    assert all(len(samples.values) == 2 and min(samples.values) > 0 for samples in measured)
    assert peer.calls == [0, 1, 3, 1, 3, 1, 3, 1, 3] * 3
    assert results.greedy.values == results.step["base only"].values, "timed once"
    assert len(without_base.greedy.values) == 2
    assert setup["workload"]["ranks"] == (4, 20)
    assert [row["name"] for row in report.as_json(results)["throughput"]] == [arm.name for arm in arms(WORKLOAD)]
    assert report.table(results, WORKLOAD, peer.name).row_count == 9


@pytest.mark.parametrize(
    ("names", "peer", "columns"),
    [
        (("base only", "a"), None, ["arm", "tok/s", "over base only", "decode step, ms", "over floor"]),
        (("a", "b"), None, ["arm", "tok/s", "decode step, ms", "over floor"]),
        (("a",), "peft", ["arm", "tok/s", "decode step, ms", "over floor", "peft, tok/s", "over peer"]),
    ],
)
def test_arms_are_compared_with_the_base_model_if_it_was_run(
    names: tuple[str, ...], peer: str | None, columns: list[str]
) -> None:
    samples = {name: Samples(name, "tok/s", [1.0]) for name in names}
    one = Samples("", "ms", [1.0])
    results = Results(throughput=samples, step=samples, floor=one, greedy=one, sampled=one, peer=samples)
    table = report.table(results, WORKLOAD, peer)
    assert [column.header for column in table.columns] == columns
    assert all(len(list(column.cells)) == len(names) for column in table.columns)


def test_ratios_are_taken_round_by_round() -> None:
    assert Samples("a", "s", [1.0, 10.0, 9.0]).ratio(Samples("b", "s", [2.0, 5.0, 3.0])) == 2.0
