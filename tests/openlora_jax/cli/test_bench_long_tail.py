"""`openlora bench coldstart` and `oversubscribe` on a small model: every arm in every round, and what is written."""

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from openlora_jax.bench import long_tail
from openlora_jax.bench.long_tail.coldstart import STATES, TOGETHER
from openlora_jax.bench.long_tail.oversubscribe import ARMS
from openlora_jax.bench.long_tail.workloads import Coldstart, Oversubscribe
from openlora_jax.cli import loading
from openlora_jax.cli.bench_long_tail import _plot
from openlora_jax.config import EngineConfig
from openlora_jax.llm import LLM
from tests.openlora_jax.cli.conftest import Ended, RunCli

ONE_PROGRAM_OF_EACH_KIND = {"row_buckets": (4,), "prefill_chunk": 32, "chunk_buckets": (32,), "max_rows": 4}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for workload in (Coldstart, Oversubscribe):
        planned: Any = workload.settings

        def settings(self: Any, planned: Any = planned) -> EngineConfig:
            config: EngineConfig = planned.fget(self)
            return config.model_copy(update=ONE_PROGRAM_OF_EACH_KIND)

        monkeypatch.setattr(workload, "settings", property(settings))
    monkeypatch.setenv("COLUMNS", "240")


def run(openlora: RunCli, folder: Path, command: str, *arguments: object) -> tuple[Ended, dict[str, Any]]:
    written = ("--cache", folder, "--json", folder / "b.json", "--markdown", folder / "b.md", "--plot", folder / "b")
    ended = openlora("bench", command, *arguments, *written)
    assert (ended.status, ended.err) == (0, ""), ended.err
    return ended, json.loads((folder / "b.json").read_text())


def test_coldstart(openlora: RunCli, tiny_base: Path, tmp_path: Path) -> None:
    asked = (
        "--prompt",
        20,
        "--new",
        3,
        "--streams",
        2,
        "--alone",
        1,
        "--bursts",
        1,
        "--beside",
        2,
        "--rate",
        50,
        "--rounds",
        2,
    )
    small = ("--stream-new", 100, "--ranks", "8,20", "--pages", 8)
    ended, written = run(openlora, tmp_path, "coldstart", "--base", tiny_base, *asked, *small)
    alone, beside = written["results"]["settings"]["alone"], written["results"]["settings"]["beside"]
    assert set(alone) == set(beside) == set(STATES)
    for state in STATES:
        from_disk, from_host = state == "disk", state != "warm"
        for runs, requests in ((alone[state], 1), (beside[state], 2)):
            assert [len(run["ttft"]) for run in runs] == [requests] * 2
            for each in runs:
                ended_well = each["loads"]["ended"]
                assert ended_well.get("disk", 0) == requests * from_disk
                assert ended_well.get("host", 0) == requests * from_host
    together = written["results"]["settings"]["together"]
    assert set(together) == set(TOGETHER)
    for state, runs in together.items():
        assert [len(run["ttft"]) for run in runs] == [4] * 2
        assert [run["loads"]["ended"].get("disk", 0) for run in runs] == [4 * (state != "warm")] * 2
    assert all(gap > 0 for run in beside["warm"] for gap in run["neighbours_gaps"])
    assert written["setup"]["workload"]["prompt"] == 20
    assert [line for line in (tmp_path / "b.md").read_text().splitlines() if line.startswith("| beside, disk")]
    assert "p99 token gap of the streams beside" in ended.out
    assert (tmp_path / "b.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "b.svg").read_text()


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of the benchmark's engines are the first."""
    loaded: list[LLM] = []

    def load(base: str, store: str, **settings: Any) -> AbstractContextManager[LLM]:
        if loaded:
            return nullcontext(loaded[0])
        loaded.append(LLM(base, store, **settings))
        return loaded[0]

    monkeypatch.setattr(loading, "load", load)


def test_oversubscribe(openlora: RunCli, tiny_base: Path, tmp_path: Path, compiled_once: None) -> None:
    asked = ("--registered", 30, "--pages", 6, "--ranks", "8,20", "--prompt", 20, "--new", 3, "--rows", 4)
    few = ("--requests", 40, "--rounds", 2, "--closed", 8, "--closed-rounds", 2)
    ended, written = run(openlora, tmp_path, "oversubscribe", "--base", tiny_base, *asked, *few)
    results = written["results"]
    assert [each["name"] for each in results["capacity"]] == ["30 registered", "4 registered"]
    assert results["rate"] == pytest.approx(0.7 * results["capacity"][0]["median"])
    assert set(results["arms"]) == set(ARMS)
    for paged, control in zip(results["arms"]["paged"], results["arms"]["control"], strict=True):
        assert paged["adapters"] == control["adapters"]
        assert len(paged["ttft"]) == len(control["ttft"]) == 20
        assert not any(control["loads"]["ended"].values()), "the control's adapters are always resident"
        assert paged["loads"]["ended"]["host"] >= len(set(paged["adapters"]) - {0, 1, 2, 3})
    assert results["arms"]["paged"][0]["loads"]["ended"]["disk"] > 0
    assert "p99 time to first token over the control's" in ended.out
    assert (tmp_path / "b.svg").exists()


def test_without_matplotlib_there_is_one_line_instead_of_a_plot(
    openlora: RunCli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "openlora_jax.bench.long_tail.plot", raising=False)
    monkeypatch.delattr(long_tail, "plot", raising=False)
    _plot(tmp_path / "b", "coldstart", None)
    assert capsys.readouterr().err == (
        "openlora: no plot: matplotlib is not installed; `pip install 'openlora-jax[plot]'`\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_pool_that_cannot_hold_every_rank_is_one_line_and_status_2(openlora: RunCli, tiny_base: Path) -> None:
    ended = openlora("bench", "oversubscribe", "--base", tiny_base, "--pages", 4)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "4 do not hold an adapter of each rank, which take 8" in ended.err


@pytest.mark.parametrize("command", ["coldstart", "oversubscribe"])
def test_a_plot_that_cannot_be_written_is_refused_at_once(openlora: RunCli, tmp_path: Path, command: str) -> None:
    ended = openlora("bench", command, "--base", tmp_path / "none", "--plot", tmp_path / "missing" / "plot")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.endswith("missing/plot.png: its folder does not exist\n")
