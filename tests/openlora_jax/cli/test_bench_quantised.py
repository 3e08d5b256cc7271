"""`openlora bench quantised` on a small model: every base is converted, scored and timed, and what is written."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from openlora_jax.bench.quantised import measure, report
from openlora_jax.bench.quantised.arms import ARMS, FLOAT32
from openlora_jax.bench.quantised.perplexity import WINDOW
from openlora_jax.bench.quantised.text import LibraryText
from openlora_jax.bench.quantised.tuned_base import RECIPE
from openlora_jax.progress import Progress
from tests.openlora_jax.cli.conftest import RunCli
from tests.openlora_jax.tiny import MODEL, write_tiny_base


def test_every_base_is_converted_scored_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openlora: RunCli
) -> None:
    """In this process, for speed, and with no more than is needed."""
    base = write_tiny_base(tmp_path / "base", replace(MODEL, intermediate_size=64))
    arms = (ARMS[0], ARMS[1], ARMS[-1])
    for module in (measure, report):
        monkeypatch.setattr(module, "ARMS", arms)
    tuned: list[Path] = []

    def make_tuned_base(base: Path, folder: Path, tokens: list[int], progress: Progress) -> None:
        tuned.append(folder)
        shutil.copytree(base, folder)

    def in_this_process(module: str, *arguments: str, status: int = 0, environment: object = None) -> int:
        if module == measure.CONVERTING:
            assert openlora(*arguments).status == status
        return 10**6 + len(arguments)

    monkeypatch.setattr(measure, "make_tuned_base", make_tuned_base)
    monkeypatch.setattr(measure, "peak", in_this_process)
    monkeypatch.setattr(measure, "library_text", lambda: LibraryText("tuned on", "held out " * 3000))
    monkeypatch.setattr(measure, "errors", lambda: {"int8": {"Gaussian": 0.01}})
    monkeypatch.setattr(measure, "ROWS", (1, 2))
    monkeypatch.setattr(measure, "POSITION", 8)
    monkeypatch.setattr(measure, "LONG", 40)
    written, cache = (tmp_path / "q.md", tmp_path / "q.json"), tmp_path / "cache"
    ended = openlora(
        "bench",
        "quantised",
        "--base",
        base,
        "--tokens",
        1,
        "--rounds",
        1,
        "--cache",
        cache,
        "--markdown",
        written[0],
        "--json",
        written[1],
    )
    assert (ended.status, ended.err) == (0, "")
    assert [folder.parent for folder in tuned] == [cache]
    assert tuned[0].name.endswith(RECIPE)
    found = json.loads(written[1].read_text())
    assert found["setup"]["versions"].keys() >= {name for name in report.LIBRARIES if find_spec(name)}
    results = found["results"]
    assert list(results["sizes"]) == [FLOAT32, "quant-int8"]
    assert results["sizes"]["quant-int8"] < results["sizes"][FLOAT32]
    assert list(results["perplexity"]) == list(results["steps"]) == [arm.name for arm in arms]
    assert len(set(results["perplexity"].values())) == 3
    assert results["scored"] == 4 * (WINDOW - 1)
    for by_case in results["steps"].values():
        assert list(by_case) == [f"{rows} rows, {tokens} tokens" for rows in (1, 2) for tokens in (8, 40)]
        assert all(len(values) == 1 and values[0] > 0 for values in by_case.values())
    assert "| 1 row, 8 tokens | 1 row, 40 tokens | 2 rows, 8 tokens |" in written[0].read_text()


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_file_that_cannot_be_written_is_refused_at_once(openlora: RunCli, tmp_path: Path, option: str) -> None:
    ended = openlora("bench", "quantised", "--base", tmp_path / "none", option, tmp_path / "missing" / "file")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.endswith("missing/file: its folder does not exist\n")
