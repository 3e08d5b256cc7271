import os
from pathlib import Path

import pytest

from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import open_regular, parse_json_object, read_json_object, read_limited


def test_a_small_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": [1, 2.5, "ü"], "c": {"b": null}}')
    assert read_json_object(tmp_path / "a.json") == {"b": [1, 2.5, "ü"], "c": {"b": None}}


def test_a_large_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    assert read_limited(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(BadCheckpoint, match="11 bytes, more than the limit of 10"):
        read_limited(tmp_path / "a", 10)


def test_a_sparse_file_counts_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadCheckpoint, match="more than the limit"):
        read_limited(tmp_path / "a", 1 << 20)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(BadCheckpoint, match="not a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(BadCheckpoint, match="No such file"):
        open_regular(tmp_path / "gone")


def test_links_within_the_folder_are_followed_and_others_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "real").write_bytes(b"in")
    (tmp_path / "outside").write_bytes(b"out")
    (folder / "inward").symlink_to("real")
    (folder / "outward").symlink_to("../outside")
    (folder / "twice").symlink_to("outward")
    assert read_limited(folder / "inward", 9) == b"in"
    for name in ("outward", "twice"):
        with pytest.raises(BadCheckpoint, match="symbolic link out of its folder"):
            open_regular(folder / name)


def test_blobs_are_trusted_only_by_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a").write_bytes(b"x")
    for folder in ("snapshots", "other"):
        (tmp_path / folder / "1").mkdir(parents=True)
        (tmp_path / folder / "1" / "file").symlink_to("../../blobs/0a")
    assert read_limited(tmp_path / "snapshots" / "1" / "file", 9) == b"x"
    with pytest.raises(BadCheckpoint, match="symbolic link"):
        open_regular(tmp_path / "other" / "1" / "file")


BAD_JSON = {
    "twice": (b'{"a": {"b": 1, "b": 1}}', "'b' occurs more than once"),
    "nan": (b'{"a": NaN}', "NaN is not a finite number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not a finite number"),
    "overflow": (b'{"a": 1e999}', "1e999 is not a finite number"),
    "a long integer": (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    "deep": (b'{"a": ' * 200_000, "nested too deep"),
    "no object": (b"3", "JSON object"),
    "not UTF-8": (b'{"a": "\xff"}', "is not JSON"),
    "more behind": (b"{} {}", "is not JSON"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_loose_json_is_refused(case: str) -> None:
    text, words = BAD_JSON[case]
    with pytest.raises(BadCheckpoint) as caught:
        parse_json_object(Path("config.json"), text)
    assert words in str(caught.value)
