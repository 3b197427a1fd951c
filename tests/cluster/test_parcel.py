"""What is sent to a cluster: this code, the recipe's file, and the command line as a shell there reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.parcel import PACKAGES, pack

ECHO = """import sys, os
print(os.getcwd(), *sys.argv[1:], sep="\\n")
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\n")
    return file


def run(command: str, parcel: Path, tmp_path: Path) -> list[str]:
    """Run the shell command in the parcel with a `cluster.cli` that prints where it is and what it is given."""
    (parcel / "cluster" / "cli.py").write_text(ECHO)
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    environment = {"PATH": f"{interpreter.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=parcel, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_command_arrives_as_it_was_given(tmp_path: Path, recipe: Path) -> None:
    parcel, place = tmp_path / "parcel", tmp_path / "a place"
    parcel.mkdir()
    place.mkdir()
    arguments = ["pretrain", f"--config={recipe}", "--name", "it's $HOME", "--address", "auto", "--seed=4"]
    where, command, config, file, *rest = run(pack(arguments, str(place), parcel), parcel, tmp_path)
    assert where == str(place)
    assert (command, config) == ("pretrain", "--config")
    assert Path(file).read_text() == "seed: 3\n" and Path(file).parent == parcel
    assert rest == ["--name", "it's $HOME", "--seed=4"]


def test_the_current_folder_is_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parcel").mkdir()
    command = pack(["pretrain", "--config", "grocery", "--job_folder=/elsewhere"], None, tmp_path / "parcel")
    assert f"cd {tmp_path} " in command
    assert command.endswith("cluster.cli pretrain --config grocery")


def test_code_is_sent_and_nothing_else(tmp_path: Path) -> None:
    pack(["doctor"], None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(PACKAGES)
    assert (tmp_path / "pipelines" / "recipes" / "grocery.yaml").is_file()
    assert not list(tmp_path.rglob("__pycache__")) and not (tmp_path / "cluster" / "definitions").exists()
