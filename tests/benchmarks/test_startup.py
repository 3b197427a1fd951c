"""How samples of processes are read, on samples that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.startup import STEP, phases, read, starts, tables

DRIVER = [
    {"time": 100.0, "command": ["python", "-m", "cluster.cli", "pretrain"]},
    {"time": 100.0, "cpu": 0.0, "title": "python -m cluster.cli", "torch": False},
    {"time": 100.0, "thread": 0, "stack": ["main", "run"]},
    {"time": 102.0, "thread": 0, "stack": ["main", "run", "connect", "_start"]},
    {"time": 105.0, "thread": 7, "stack": ["Thread.run", "fit"]},
    {"time": 106.0, "thread": 0, "stack": ["main", "run", "pretrain", "load_images"]},
    {"time": 107.0, "thread": 0, "stack": ["main", "run", "pretrain", "drive", "join"]},
    {"time": 120.0, "thread": 0, "stack": ["main", "run", "shutdown"]},
    {"time": 121.0, "cpu": 9.5, "title": "python -m cluster.cli", "torch": True},
]
WORKER = [
    {"time": 110.0, "command": ["python", "default_worker.py", "--node=1"]},
    {"time": 111.0, "thread": 0, "stack": ["main_loop"]},
    {"time": 115.0, "thread": 3, "stack": ["train_worker", STEP]},
    {"time": 119.0, "cpu": 4.0, "title": "ray::RayTrainWorker.execute", "torch": True},
]


@pytest.fixture
def samples(tmp_path: Path) -> list[Any]:
    for name, entries in {"1": DRIVER, "2": WORKER}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return [read(tmp_path / f"{name}.jsonl") for name in ("1", "2")]


def test_every_second_of_the_driver_is_in_one_phase(samples: list[Any]) -> None:
    spent = {row["phase"]: row["seconds"] for row in phases(samples)}
    assert spent.pop("from the command to the first step") == 15
    assert {name: seconds for name, seconds in spent.items() if seconds} == {
        "imports and options": 2,
        "Ray starts": 4,
        "images are read and checked": 1,
        "workers start, to their first step": 8,
        "they train, score and save": 5,
        "Ray ends": 1,
    }
    assert sum(spent.values()) == 121 - 100


def test_a_process_is_named_as_ray_names_it(samples: list[Any]) -> None:
    assert starts(samples)[1] == {
        "process": "ray::RayTrainWorker",
        "started": 10.0,
        "cpu_seconds": 4.0,
        "torch": True,
    }


def test_the_tables_show_every_row(samples: list[Any]) -> None:
    command = {"command": "pretrain", "seconds": {"median": 20.0, "min": 19.0, "max": 21.04}}
    shown = tables([command, *phases(samples), *starts(samples)])
    assert "| pretrain | 20.0 s (19.0-21.0) |" in shown
    assert "| Ray starts | 4.0 s |" in shown and "| ray::RayTrainWorker | 10.0 s | 4.0 s | yes |" in shown
