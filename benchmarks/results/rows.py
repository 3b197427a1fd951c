"""The rows of demo.json and grocery.json: a run each, {set, contender, seed, scores, curves}, epochs and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import machine

Row = dict[str, Any]
UNTRAINED = "untrained"


def path_of(data: str) -> Path:
    """Return the file of a data set's rows."""
    return Path("benchmarks/results") / f"{data}.json"


def read(path: Path) -> list[Row]:
    """Return the rows that were measured so far."""
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def keep(path: Path, row: Row) -> None:
    """Write a row in the place of an earlier one of the same run, and say how it did."""
    same = ("set", "contender", "seed")
    others = [other for other in read(path) if any(other[name] != row[name] for name in same)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": [*others, row]}, indent=1) + "\n")
    scores = "  ".join(f"{name} {value:.1f}" for name, value in row["scores"].items())
    print(f"{row['set']}: {row['contender']}, seed {row['seed']}: {scores}", flush=True)
