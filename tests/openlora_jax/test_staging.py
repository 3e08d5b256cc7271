import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openlora_jax.staging import staged_directory

KILLED = """
import os, signal, sys
from pathlib import Path
from openlora_jax.staging import staged_directory
with staged_directory(Path(sys.argv[1])) as stage:
    (stage / "half").write_text("done")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_directory_appears_whole(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "base"
    with staged_directory(destination) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text("x")
        assert not destination.exists()
    assert (destination / "sub" / "file").read_text() == "x"
    assert [path.name for path in destination.parent.iterdir()] == ["base"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged_directory(tmp_path / "base") as stage:
            (stage / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine").write_text("x")
    with pytest.raises(OSError, match="not empty"), staged_directory(tmp_path / "base"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_killed_process_leaves_only_a_partial_until_the_next(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "base")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith(".base.partial-") for path in tmp_path.iterdir()] == [True]
    (tmp_path / ".base.partial-link").symlink_to(tmp_path / "kept", target_is_directory=True)
    (tmp_path / "kept").mkdir()
    with staged_directory(tmp_path / "base"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"base", "kept", ".base.partial-link"}


def test_what_is_being_made_is_not_swept(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "other" / "base") as first:
        with staged_directory(first.parent / "base") as second:
            assert {path.name for path in first.parent.iterdir()} == {first.name, second.name}
        assert first.exists()
        (first.parent / "base").rmdir()
    assert [path.name for path in first.parent.iterdir()] == ["base"]
