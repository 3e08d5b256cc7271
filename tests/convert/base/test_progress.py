import pytest

from convert.base import progress_bar


def test_nothing_is_drawn_before_the_first_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar():
        pass
    assert capsys.readouterr() == ("", "")


def test_the_last_stage_stays_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress("weights", 1, 2)
        progress("saving", 2_000, 2_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "saving" in err
    assert "2.0/2.0 kB" in err
