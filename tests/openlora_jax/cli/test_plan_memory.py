import re
from pathlib import Path

import pytest

from openlora_jax.observed import Observed, observed_path
from tests.openlora_jax.cli.conftest import RunCli
from tests.openlora_jax.tiny import DIGEST


def counts(out: str) -> dict[str, int]:
    """Line of the plan -> its count."""
    return {name: int(count) for name, count in re.findall(r"^\W+(\w[\w ]+?\w) +[^\w\s] +(\d+) \W", out, re.M)}


def test_a_plan_for_a_machine_of_so_many_bytes(openlora: RunCli, tiny_base: Path) -> None:
    out = openlora("plan-memory", "--base", tiny_base, "--device", "64MB").out
    planned = counts(out)
    assert planned["adapter pages of q_proj"] == planned["adapter pages of down_proj"] > 33
    assert planned["adapter pages of lm_head"] == 1
    assert planned["KV blocks of 32 tokens"] > 2
    found = re.findall(r"up to (\d+)\D+(\d+)\D+(\d+)", out.replace(",", ""))
    rows = {int(rank): (int(qv), int(every)) for rank, qv, every in found}
    assert sorted(rows) == [16, 32, 64, 128, 256]
    assert all(qv > every for qv, every in rows.values())
    assert rows[16][1] == planned["adapter pages of q_proj"] - 1
    assert rows[256][1] * 16 <= rows[16][1]


def test_a_stores_adapters_and_what_was_observed(
    openlora: RunCli, tiny_base: Path, tiny_store: Path, tmp_path: Path
) -> None:
    asked = ("plan-memory", "--base", tiny_base, "--store", tiny_store, "--device", "64MB")
    out = openlora(*asked).out
    assert counts(out)["adapter pages of q_proj"] > counts(out)["adapter pages of o_proj"] == 17
    assert re.search(r"2 adapters are registered; [\d,]+ of them fit at once", out)
    path = observed_path(tiny_store, DIGEST)
    try:
        Observed(base_digest=DIGEST, preemptions=1, pool_bytes=1000).write(path)
        assert counts(openlora(*asked).out)["KV blocks of 32 tokens"] > counts(out)["KV blocks of 32 tokens"]
    finally:
        path.unlink()


def test_a_configuration_is_a_device(openlora: RunCli, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("device_memory: 64MB\nkv_block: 16\n")
    own = counts(openlora("plan-memory", "--base", tiny_base, "--device", tmp_path / "own.yaml").out)
    assert own["KV blocks of 16 tokens"] > 513
    assert "4096 is more than the 128" in openlora("plan-memory", "--base", tiny_base, "--device", "l4").err


def test_without_a_device_it_is_this_machine(openlora: RunCli, tiny_base: Path) -> None:
    assert counts(openlora("plan-memory", "--base", tiny_base).out)["KV blocks of 32 tokens"] == 513


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("1kB", "choose a smaller base model"),
        ("cpu", "names no device_memory"),
        ("nowhere", "nowhere: cannot be read"),
        ("0", "device_memory"),
    ],
)
def test_what_cannot_be_planned_is_said(openlora: RunCli, tiny_base: Path, device: str, problem: str) -> None:
    ended = openlora("plan-memory", "--base", tiny_base, "--device", device)
    assert ended.status == 2
    assert problem in ended.err
    assert len(ended.err.splitlines()) == 1
