"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.files import write_whole


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
