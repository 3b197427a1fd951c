"""The rows of a set's file: a run each, {set, contender, seed, cpu, epochs, steps, scores, curves}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
UNTRAINED = "untrained"
# Curves that rows keep, and how they are called.
WATCHED = {"eval/retrieval/rank1": "Rank-1, %", "eval/knn/fine": "k-NN fine, %", "eval/rankme": "RankMe"}


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
    # Beside it first: who is killed here should lose no hour's work.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"rows": [*others, row]}, indent=1) + "\n")
    partial.replace(path)
    scores = "  ".join(f"{name} {value:.1f}" for name, value in row["scores"].items())
    print(f"{row['set']}: {row['contender']}, seed {row['seed']}: {scores}", flush=True)
