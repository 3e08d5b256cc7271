"""`openlora train`, up to the adapter that `openlora convert adapter` takes."""

import json
from pathlib import Path

import jax
import pytest

from tests.openlora_jax.cli.conftest import RunCli

ROWS = """\
{"prompt": "the sea is", "completion": " blue", "id": 1}

{"messages": [{"role": "user", "content": "hi"}], "completion": "ahoy"}
{"prompt_ids": [5, 6, 7], "completion_ids": [8, 9]}
"""


def test_from_rows_to_a_store(openlora: RunCli, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    sizes = ("--rank", 2, "--alpha", 4, "--targets", "q_proj,v_proj", "--steps", 12, "--lr", 0.02)
    with jax.numpy_dtype_promotion("standard"):  # optax, see tests/openlora_jax/training/conftest.py
        made = openlora(
            "train", "--base", tiny_base, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "mine", *sizes
        )
    assert (made.status, made.err) == (0, "")
    report = json.loads(made.out)
    assert (report["examples"], report["steps"]) == (3, 12)
    assert report["loss"]["last"] < report["loss"]["first"]
    to = ("--store", tmp_path / "store", "--name", "mine", "--base", tiny_base)
    converted = openlora("convert", "adapter", tmp_path / "mine", *to)
    assert converted.status == 0
    assert json.loads(converted.out)["warnings"] == []
    again = openlora("train", "--base", tiny_base, "--data", "-", "--out", tmp_path / "mine", stdin=ROWS)
    assert (again.status, "choose another or remove it" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        ((), "", "data: has no examples"),
        ((), '{"prompt": "a"}', "-:1: completion: is missing"),
        ((), '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b", "adapter": "x"}', "-:2: adapter:"),
        (("--rank", 0), ROWS, "rank: "),
        (("--targets", "q_proj,lm_head"), ROWS, "targets: "),
        (("--lr", "nan"), ROWS, "learning_rate: "),
    ],
)
def test_mistakes_are_one_line(
    openlora: RunCli, tiny_base: Path, tmp_path: Path, arguments: tuple[object, ...], rows: str, message: str
) -> None:
    out = tmp_path / "out"
    ended = openlora("train", "--base", tiny_base, "--data", "-", "--out", out, *arguments, stdin=rows)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not out.exists()
