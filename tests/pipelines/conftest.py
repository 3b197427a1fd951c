"""What tests of runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.disk import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB, to be filled."""
    try:
        with small_disk(tmp_path / "disk", megabytes=64) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))
