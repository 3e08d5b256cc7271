"""`bench quantised`: its text, its perplexity, its formats beside other people's, what it keeps and what it says."""

from pathlib import Path

import numpy as np
import pytest

from openlora_jax.bench.quantised import measure, memory, report
from openlora_jax.bench.quantised.arms import ARMS, FLOAT32
from openlora_jax.bench.quantised.memory import peak
from openlora_jax.bench.quantised.perplexity import WINDOW, surprises, windows
from openlora_jax.bench.quantised.tensors import TAILS, relative_error, roundings, sample
from openlora_jax.bench.quantised.text import library_text
from openlora_jax.bench.samples import Samples
from openlora_jax.errors import InvalidConfig
from openlora_jax.llm import LLM
from openlora_jax.progress import Progress


def test_what_is_held_out_is_long_enough_and_not_tuned_on() -> None:
    text = library_text()
    assert len(text.held_out) > 250_000, "characters, about four to a token"
    long = [part for part in text.held_out.split("\n\n") if len(part) >= 200]
    assert sum(part in text.tuned_on for part in long) < len(long) / 20, "no more than what such texts share"
    assert text.digest == library_text().digest


def test_windows_are_whole_and_hold_enough() -> None:
    found = windows(range(10 * WINDOW + 5), 3 * WINDOW)
    assert found.shape == (4, WINDOW)
    np.testing.assert_array_equal(found.reshape(-1), range(4 * WINDOW))
    assert len(windows(range(10 * WINDOW), 10**9)) == 8, "whole batches, no more than there is"


def test_products_of_bfloat16_score_as_the_engine_does(tiny_llm: LLM) -> None:
    texts = np.random.default_rng(0).integers(3, 300, (2, 128)).astype(np.int32)
    engine = tiny_llm.score([row[:1].tolist() for row in texts], [row[1:].tolist() for row in texts])
    found = [np.asarray(surprises(tiny_llm.runner.parameters, texts, tiny_llm.model, kv)) for kv in ("float32", "int8")]
    np.testing.assert_allclose(-found[0], [each.logprobs for each in engine], atol=2e-3)
    assert 2e-3 < np.abs(found[1] - found[0]).max() < 0.3


def test_a_perplexity_is_computed_once(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def perplexity(base: Path, kv_dtype: str, texts: object, progress: Progress) -> float:
        asked.append(kv_dtype)
        return 10.0 + len(asked)

    monkeypatch.setattr(measure, "perplexity", perplexity)
    bases = {arm.folder: tiny_base for arm in ARMS}
    texts, kept = np.zeros((1, 4), np.int32), tmp_path / "kept.json"
    first = measure.perplexities(bases, texts, kept, lambda *_: None)
    assert first[FLOAT32] == 11.0
    assert asked == ["float32", "int8"], "all are the same base here, but for the cache's type"
    assert measure.perplexities(bases, texts, kept, lambda *_: None) == first
    measure.perplexities(bases, texts + 1, kept, lambda *_: None)
    assert len(asked) == 4


def test_memory_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_held", lambda process: 0)
    with pytest.raises(InvalidConfig, match="run it on Linux"):
        peak("openlora_jax")


def test_the_height_of_a_process_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy.py").write_text(
        "import sys, time\nheld = bytearray(int(sys.argv[1]))\ndel held\ntime.sleep(0.3)\nsys.exit(int(sys.argv[2]))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert 200e6 < peak("heavy", "200000000", "0") < 260e6
    with pytest.raises(InvalidConfig, match=r"heavy 1 3` ended with status 3: it said nothing"):
        peak("heavy", "1", "3")
    with pytest.raises(InvalidConfig, match=r"ended with status 1: ValueError: .*'much'"):
        peak("heavy", "much")


def test_widths_that_cannot_be_packed_are_refused_first(tmp_path: Path, tiny_base: Path) -> None:
    """Of the tiny model, down has 48 columns."""
    with pytest.raises(InvalidConfig, match=r"layers.0.down.weight cannot be: 48 columns are not a multiple of the 32"):
        measure.measure(tiny_base, tmp_path, 1, 1, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_the_tables_hold_figures_against_their_bounds() -> None:
    folders = {arm.folder for arm in ARMS}
    results = measure.Results(
        text="f" * 64,
        scored=1000,
        parameters=10**6,
        largest=10**6,
        sizes=dict.fromkeys(folders, 10**6),
        converting=dict.fromkeys(folders, 10**6),
        loading=dict.fromkeys(folders, 3 * 10**6),
        perplexity={arm.name: 20.0 if arm.bound is None else 20.0 * (1.001 + arm.bound) for arm in ARMS},
        steps={arm.name: {(1, 96): Samples(arm.name, "ms", [3.0, 1.0, 2.0])} for arm in ARMS},
        errors={"int8": {"Gaussian": 0.01}},
    )
    page = report.markdown(results)
    assert "| int8, groups of 32 | 1.000 | 20.120 | +0.60% | 0.5% | short |" in page
    assert "| int4 with offsets, groups of 64 | 1.000 | 20.000 | +0.00% |  |  |" in page
    assert "| int8, groups of 32 | 1 | 2 | 1 | pass | 3 | short |" in page
    assert "| float32 | 1 | 2 | 1 |  | 3 |  |" in page
    assert "| float32 | 1.0 (2.0) |" in page
    assert report.as_json(results)["steps"][FLOAT32] == {"1 rows, 96 tokens": [3.0, 1.0, 2.0]}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tail", TAILS.values())
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("nf4, groups of 64", "bitsandbytes nf4, blocks of 64, double"),
        ("int8, whole rows", "bitsandbytes int8, whole rows"),
        ("int4 with offsets, groups of 32", "torchao int4 with zero points, groups of 32"),
        ("int4 with offsets, groups of 128", "torchao int4 with zero points, groups of 128"),
        ("int4 symmetric, groups of 32", "torchao int4 symmetric, groups of 32"),
    ],
)
def test_a_matrix_comes_out_as_well_as_theirs(ours: str, theirs: str, tail: int | None) -> None:
    """Offsets cost more than zero points, which are whole, only where the tails are heavy and groups long."""
    known, matrix = roundings(), sample(tail)
    assert relative_error(matrix, known[ours]) < 1.02 * relative_error(matrix, known[theirs])
