"""A pickle may ask for any function to be called; none of ours does, and none that we are given may."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lodisc.unpickle import load_plain

REPOSITORY = Path(__file__).parents[2]
UNSAFE = re.compile(
    r"torch\.load\(|pickle\.loads?\(|allow_pickle|weights_only=False|joblib|read_pickle|pickle\.Unpickler"
)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_tensors_and_plain_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"weights": torch.arange(3), "step": 7, "config": {"name": None, "rates": [0.1]}}, path)
    state = load_plain(path)
    assert state["step"] == 7 and state["weights"].tolist() == [0, 1, 2] and state["config"]["rates"] == [0.1]


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "state.pt", tmp_path / "made"
    torch.save({"weights": torch.arange(3), "step": Touch(made)}, path)
    with pytest.raises(ValueError, match="more than tensors and plain values") as refused:
        load_plain(path)
    assert not made.exists() and "\n" not in str(refused.value) and "weights_only" not in str(refused.value)
    torch.load(path, weights_only=False)
    assert made.exists(), "the file does ask for code"


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 a torn archive"])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is damaged") as refused:
        load_plain(path)
    assert "\n" not in str(refused.value)


def test_nothing_else_in_the_code_unpickles() -> None:
    files = [
        file for folder in ("lodisc", "pipelines", "tuning", "cluster") for file in (REPOSITORY / folder).rglob("*.py")
    ]
    found = {file.relative_to(REPOSITORY).as_posix() for file in files if UNSAFE.search(file.read_text())}
    assert found == {"lodisc/unpickle.py"} and len(files) > 50
