"""`openlora bench kernels`: what it prints and writes, and its statuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_jax import llm
from openlora_jax.bench.kernels import lora_cases, measure
from openlora_jax.bench.kernels.workload import MIXES, SHAPES
from pallas_kernels.registry import implementations
from tests.openlora_jax.bench.test_kernels import TINY
from tests.openlora_jax.cli.conftest import RunCli


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "smollm2", TINY)
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(lora_cases, "CALLS", 1)
    for module in (measure, lora_cases):
        monkeypatch.setattr(module, "MIXES", {"identical": MIXES["identical"]})
    monkeypatch.setenv("COLUMNS", "300")


def test_table_and_json_and_a_status_of_1_where_a_kernel_is_wrong(
    openlora: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ops = replace(implementations("cpu"), paged_attention=lambda q, *_: q)
    monkeypatch.setattr(llm, "resolve_ops", lambda backend: ops)
    asked = ("--shape", "smollm2", "--rows", 2, "--ranks", "16,8", "--groups", "o", "--rounds", 1)
    ended = openlora("bench", "kernels", *asked, "--json", tmp_path / "k.json")
    assert [line.partition(": wrong by ")[0] for line in ended.err.splitlines()] == [
        "openlora: attention decode: xla",
        "openlora: attention decode, int8: xla",
        "openlora: attention prefill: xla",
        "openlora: attention prefill, int8: xla",
    ]
    assert ended.status == 1
    written = json.loads((tmp_path / "k.json").read_text())
    assert written["setup"]["backend"] == "cpu"
    assert written["setup"]["workload"]["ranks"] == [16, 8]
    assert written["setup"]["device"]["peak"]["source"] == "measured"
    ops_timed = [result["op"] for result in written["results"]]
    assert ops_timed.count("lora prefill, o") == 1
    assert all(op in ended.out for op in ops_timed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "gpt-2"), "'gpt-2' is not one of 'smollm2', 'llama-3.1-8b'"),
        (("--ranks", "300"), "'300' is not a list of whole numbers from 1 to 256"),
        (("--groups", "qkv,mlp"), "'mlp' is none of qkv, o, gate_up, down"),
        (("--backend", "cuda"), "needs a gpu"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(openlora: RunCli, arguments: tuple[str, ...], message: str) -> None:
    ended = openlora("bench", "kernels", *arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err
