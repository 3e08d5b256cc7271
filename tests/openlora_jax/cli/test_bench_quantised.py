"""`openlora bench quantised`: what it refuses before it measures."""

from pathlib import Path

import pytest

from tests.openlora_jax.cli.conftest import RunCli


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_file_that_cannot_be_written_is_refused_at_once(openlora: RunCli, tmp_path: Path, option: str) -> None:
    ended = openlora("bench", "quantised", "--base", tmp_path / "none", option, tmp_path / "missing" / "file")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.endswith("missing/file: its folder does not exist\n")
