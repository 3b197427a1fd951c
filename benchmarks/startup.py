"""Where the time goes from the command to the first step, and to the end of a run that hardly trains.

    python -m benchmarks.startup --out benchmarks/results/startup.json
    python -m benchmarks.startup --code ../OTHER_CHECKOUT --out other.json

`lodisc pretrain` runs in processes of its own, on 40 images of 64 px for 12 steps, with a new MLflow store: as it is,
for the time that it takes, and once with each of its Python processes sampled (`benchmarks/sampler`), for what the time
is spent on. Sampling slows it down by a few percent. Use it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.photographs import make_photographs
from benchmarks.report import markdown_table, write_results
from benchmarks.timing import spread

REPOSITORY = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "cluster.cli")
RECIPE: dict[str, Any] = {
    "encoder": {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "depth": 2},
    "model": {"hidden_dim": 64, "output_dim": 32},
    "optim": {"epochs": 3, "batch_size": 10, "base_lr": 0.001, "warmup_epochs": 1, "precision": "fp32"},
    "evaluation": {"every_epochs": 3},
}
# What the driver's main thread does, by the function that it is in; the first that is found counts.
PHASES = {
    "Ray starts": "_start",
    "images are read and checked": "load_images",
    "the run is opened in MLflow": "open_tracking",
    "workers": "drive",
    "the encoder is kept in MLflow": "keep_encoder",
    "Ray ends": "shutdown",
}
OTHER = "imports and options"
STEP = "Learner.train_step"


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, default=REPOSITORY, help="the checkout to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.code.absolute(), Path(folder), arguments.rounds)
    write_results(arguments.out, rows)
    print(tables(rows))


def measure(code: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the rows: {command, seconds}, then {phase, seconds} and {process, started, cpu_seconds, torch}."""
    make_photographs(folder / "images", 40, 64, 64)
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"images": str(folder / "images")}, **RECIPE}))
    seconds: dict[str, list[float]] = {"pretrain --help": [], "pretrain": []}
    for number in range(rounds + 1):  # the first one reads files that are not in memory yet
        seconds["pretrain --help"].append(run(code, ["pretrain", "--help"]))
        seconds["pretrain"].append(run(code, pretraining(recipe, folder / f"runs-{number}")))
    rows: list[dict[str, Any]] = [{"command": name, "seconds": spread(times[1:])} for name, times in seconds.items()]
    samples = folder / "samples"
    samples.mkdir()
    run(code, pretraining(recipe, folder / "sampled"), {"STARTUP_SAMPLES": str(samples)})
    processes = sorted((read(file) for file in samples.iterdir()), key=lambda process: process.started)
    return [*rows, *phases(processes), *starts(processes)]


def pretraining(recipe: Path, storage: Path) -> list[str]:
    return ["pretrain", "--config", str(recipe), "--storage", str(storage), "--name", "run"]


def run(code: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> float:
    """Run the command with a checkout's code, and return the seconds that it took."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = f"{REPOSITORY / 'benchmarks' / 'sampler'}{os.pathsep}{code}"
    started = time.perf_counter()
    environment = ours | {"PYTHONPATH": paths} | (environment or {})
    subprocess.run([*COMMAND, *arguments], check=True, cwd=code, capture_output=True, env=environment)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Process:
    """A process as it sampled itself.

    Attributes:
        started: seconds since 1970.
        command: its arguments.
        main: (time, functions) of the main thread, in order.
        stacks: (time, functions) of all threads, in order.
        last: its last {time, cpu, title, torch}.
    """

    started: float
    command: list[str]
    main: list[tuple[float, list[str]]]
    stacks: list[tuple[float, list[str]]]
    last: dict[str, Any]

    @property
    def name(self) -> str:
        """What Ray calls it, or the module or file that it runs."""
        title: str = self.last["title"]
        if title.startswith("ray::"):
            return title.split(".")[0]
        words = [Path(word).stem for word in self.command if "=" not in word and not word.startswith("-")]
        return words[1] if len(words) > 1 else title


def read(file: Path) -> Process:
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    stacks = [(entry["time"], entry["stack"]) for entry in entries if "stack" in entry]
    main = [(entry["time"], entry["stack"]) for entry in entries if entry.get("thread") == 0]
    last = [entry for entry in entries if "cpu" in entry][-1]
    return Process(entries[0]["time"], entries[0]["command"], main, stacks, last)


def phases(processes: list[Process]) -> list[dict[str, Any]]:
    """Return how many seconds the driver was in each phase; that of the workers is cut at their first step."""
    driver = processes[0]
    seconds = dict.fromkeys([OTHER, *PHASES], 0.0)
    times = [*(at for at, _ in driver.main), driver.last["time"]]
    for (at, stack), until in zip(driver.main, times[1:], strict=True):
        phase = next((name for name, function in PHASES.items() if function in stack), OTHER)
        seconds[phase] += until - at
    workers = min(at for at, stack in driver.main if PHASES["workers"] in stack)
    step = min(at for process in processes for at, stack in process.stacks if STEP in stack)
    training = seconds.pop("workers") - (step - workers)
    seconds |= {"workers start, to their first step": step - workers, "they train, score and save": training}
    first = {"phase": "from the command to the first step", "seconds": step - driver.started}
    return [first, *({"phase": phase, "seconds": spent} for phase, spent in seconds.items())]


def starts(processes: list[Process]) -> list[dict[str, Any]]:
    """Return each Python process: what it is, when it began, and the CPU seconds that it took."""
    begun = processes[0].started
    return [
        {
            "process": process.name,
            "started": process.started - begun,
            "cpu_seconds": process.last["cpu"],
            "torch": process.last["torch"],
        }
        for process in processes
    ]


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the rows as three Markdown tables."""
    commands = [
        (row["command"], "{median:.1f} s ({min:.1f}-{max:.1f})".format(**row["seconds"]))
        for row in rows
        if "command" in row
    ]
    spent = [(row["phase"], f"{row['seconds']:.1f} s") for row in rows if "phase" in row]
    begun = [
        (row["process"], f"{row['started']:.1f} s", f"{row['cpu_seconds']:.1f} s", "yes" if row["torch"] else "no")
        for row in rows
        if "process" in row
    ]
    return "\n\n".join(
        (
            markdown_table(("`lodisc`", "time"), commands),
            markdown_table(("phase", "time"), spent),
            markdown_table(("process", "begins after", "CPU", "imports torch"), begun),
        )
    )


if __name__ == "__main__":
    main()
