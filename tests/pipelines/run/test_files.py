"""Files that are whole or not there, and places that take them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.run.files import local_path, require_writable, write_whole
from tests.pipelines.disk import fill, small_disk


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "page.html"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"

    def fail(source: str, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"third")
    assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["out", "out/deep/page.html", "there", "there/page.html"])
def test_what_can_be_written_is_taken_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    require_writable("out", tmp_path / name)
    require_writable("out", f"file://{tmp_path}/{name}")
    require_writable("out", "s3://no/such/bucket")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in (("/sys/out", "/sys: "), (f"{tmp_path}/file/out", f"{tmp_path}/file: Not a directory")):
        with pytest.raises(ValueError, match=f"^out: {path} cannot be written: {reason}"):
            require_writable("out", path)


def test_a_folder_without_rights_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ValueError, match=r"Permission denied; make room, ask for the right"):
        require_writable("out", tmp_path / "deep" / "out")


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", megabytes=2) as disk:
            require_writable("storage", disk / "runs")
            fill(disk)
            with pytest.raises(ValueError, match="No space left on device; make room"):
                require_writable("storage", disk / "runs")
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_place_on_this_machine_has_a_path(home: Path) -> None:
    assert local_path("~/runs") == home / "runs"
    assert local_path("file:///a%20b/c d") == Path("/a b/c d")
    assert local_path("runs") == Path("runs").absolute()
    assert local_path("s3://bucket/runs") is None
