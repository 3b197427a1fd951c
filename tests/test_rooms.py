"""Imports go one way between packages and between the rooms of pipelines/, also those inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment import REPOSITORY

RUN = {"lodisc", "pipelines.run"}
EVALUATION = RUN | {"pipelines.data", "pipelines.tracking"}
TOP = EVALUATION | {"pipelines.evaluation", "pipelines.pictures"}
PIPELINES = TOP | {"pipelines.training", "pipelines.takeaway"}
MAY_IMPORT: dict[str, set[str]] = {
    "lodisc": set(),
    "pipelines.pictures": set(),
    "pipelines.run": {"lodisc"},
    "pipelines.data": RUN,
    "pipelines.tracking": RUN,
    "pipelines.evaluation": EVALUATION,
    "pipelines.training": TOP,
    "pipelines.takeaway": TOP,
    "pipelines.demo": PIPELINES,
    "tuning": PIPELINES,
    "cluster": PIPELINES | {"tuning"},
}
PACKAGES = ("lodisc", "pipelines", "tuning", "cluster")


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipelines" else parts[0]


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    place = REPOSITORY / room.replace(".", "/")
    files = [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else sorted(place.rglob("*.py"))
    assert files
    for file in files:
        rooms = {room_of(name) for name in imported(file) if name.split(".")[0] in PACKAGES} - {room}
        assert rooms <= MAY_IMPORT[room], file


def test_every_room_says_what_it_holds_and_keeps_to_a_dozen_files() -> None:
    folders = {path.name for path in (REPOSITORY / "pipelines").iterdir() if (path / "__init__.py").is_file()}
    assert {f"pipelines.{name}" for name in folders} == {room for room in MAY_IMPORT if "." in room} - {
        "pipelines.pictures"
    }
    for name in folders:
        files = [path for path in (REPOSITORY / "pipelines" / name).glob("*.py") if path.name != "__init__.py"]
        said = ast.get_docstring(ast.parse((REPOSITORY / "pipelines" / name / "__init__.py").read_text()))
        assert said and "Imports" in said and len(files) <= 12, name
