from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from benchmarks.exports import SCRIPTS, bytes_of, photographs_of, table
from pipelines.takeaway.options import Target


def test_every_form_has_its_way_to_be_loaded() -> None:
    assert {*SCRIPTS, "mlflow"} == set(get_args(Target))
    assert all("lodisc" not in script for script in SCRIPTS.values())


def test_photographs_are_spread_over_a_folder_or_list(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = image_folder(classes=2, per_class=4)
    assert [Path(path).parent.name for path in photographs_of(str(root), 4)] == ["class-0"] * 2 + ["class-1"] * 2
    (root / "photos.txt").write_text("class-0/000.jpg, 1\nclass-1/000.jpg, 2\n")
    assert photographs_of(str(root / "photos.txt"), 1) == [str(root / "class-0" / "000.jpg")]
    assert bytes_of(root / "photos.txt") == 38


def test_table() -> None:
    row = {"form": "onnx", "bytes": 1_500_000, "std": 1.0, "same": 2e-7, "own": None}
    assert table([row, row | {"same": 0.0}]).splitlines()[2:] == [
        "| onnx | 1.50 MB | 2.0e-07 |  | 1.00 |",
        "| onnx | 1.50 MB | 0 |  | 1.00 |",
    ]
