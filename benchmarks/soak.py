"""What a run on several nodes loses when something is killed every few seconds.

    python -m benchmarks.soak --faults 20 --out benchmarks/results/soak.json

A head, two nodes that train, a node that draws views and an MLflow server are processes of this machine, each node at
an address of its own where the user is root. One of them, or of what runs on them, is killed, stopped or told to leave
at random; what is gone is replaced, and the run's driver, where it has ended, is started again with --resume. At the
end the run's losses in MLflow are compared with those of a run to which nothing happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import markdown_table, write_results
from tests.cluster.lab import SECONDS, Lab, ended, workers_of
from tests.cluster.nodes import Nodes, stopped, wait_for
from tests.conftest import make_images
from tests.pipelines.disk import fill, small_disk
from tests.pipelines.mlflow_server import Server

EVERY_STEPS = 5
PAUSE = (2.0, 6.0)  # seconds of undisturbed training before a fault


@dataclass(frozen=True)
class Fault:
    """One fault and what came of it.

    Attributes:
        kind: which.
        step: the last step that was computed before it.
        repeated: steps that were computed again.
        seconds: until the run was beyond that step, with a checkpoint.
    """

    kind: str
    step: int
    repeated: int
    seconds: float


class Soak:
    """A run and what is done to it."""

    def __init__(self, lab: Lab, server: Server, options: list[str]) -> None:
        self.lab, self.server, self.options = lab, server, options
        self.cluster = lab.cluster
        self.spare = 0
        self.driver = self.drive()

    def drive(self, *more: str) -> subprocess.Popen[str]:
        with (self.lab.folder / "driver.log").open("a") as log:
            return self.cluster.run("pretrain", *self.options, *more, "--address", self.cluster.address, stdout=log)

    def training(self) -> list[str]:
        """Return the names of nodes that train."""
        return [name for name, node in self.cluster.nodes.items() if workers_of(node)]

    def replace(self, name: str) -> None:
        """Start another node in the place of one that is gone."""
        self.cluster.nodes.pop(name).kill()
        self.spare += 1
        labels = ["ingest=true"] if name.startswith("ingest") else []
        kind = name.split("-")[0]
        self.cluster.start(f"{kind}-{self.spare}", cpus=1, labels=labels)

    def worker(self, random: random.Random) -> None:
        """kill -9 of a training worker"""
        node = self.cluster.nodes[random.choice(self.training())]
        node.find("RayTrainWorker")[0].kill()

    def node(self, random: random.Random) -> None:
        """power cut of a node that trains"""
        self.replace(random.choice(self.training()))

    def raylet(self, random: random.Random) -> None:
        """kill -9 of the raylet of a node that trains"""
        name = random.choice(self.training())
        self.cluster.nodes[name].find("raylet")[0].kill()
        self.replace(name)

    def ingest(self, random: random.Random) -> None:
        """power cut of the node that draws views"""
        self.replace(next(name for name in self.cluster.nodes if name.startswith("ingest")))

    def driver_killed(self, random: random.Random) -> None:
        """kill -9 of the driver, then --resume"""
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        self.driver = self.drive("--resume")

    def driver_told(self, random: random.Random) -> None:
        """SIGTERM to the driver, then --resume"""
        self.driver.send_signal(signal.SIGTERM)
        assert self.driver.wait(SECONDS) == 143
        self.driver = self.drive("--resume")

    def reclaimed(self, random: random.Random) -> None:
        """a node that trains is announced to be taken, and taken"""
        name = random.choice(self.training())
        leaving = self.cluster.run(
            "leave", "--within", "60", "--address", self.cluster.address, node=self.cluster.nodes[name]
        )
        assert "no worker trains here" in ended(leaving)
        self.replace(name)

    def mlflow(self, random: random.Random) -> None:
        """kill -9 of the MLflow server, back after 10 s"""
        self.server.__exit__(None, None, None)
        time.sleep(10)
        self.server.__enter__()

    def slow(self, random: random.Random) -> None:
        """a worker stands still for 10 s"""
        with stopped(self.cluster.nodes[random.choice(self.training())].find("RayTrainWorker")):
            time.sleep(10)

    def full(self, random: random.Random) -> None:
        """the disk is full for 20 s, then --resume if the run ended"""
        fill(self.lab.storage)
        time.sleep(20)
        (self.lab.storage / "ballast").unlink()
        if self.driver.poll() is not None:
            self.driver = self.drive("--resume")


FAULTS: dict[str, Callable[[Soak, random.Random], None]] = {
    method.__name__: method
    for method in (
        Soak.worker,
        Soak.node,
        Soak.raylet,
        Soak.ingest,
        Soak.driver_killed,
        Soak.driver_told,
        Soak.reclaimed,
        Soak.mlflow,
        Soak.slow,
        Soak.full,
    )
}


def main() -> None:
    """Run both runs, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"logs and runs are in {folder}", flush=True)
    with laboratory(folder) as (lab, server):
        row = soak(lab, server, arguments)
    write_results(arguments.out, [row])
    print(table(row.pop("faults")), row, sep="\n\n")


@contextmanager
def laboratory(folder: Path) -> Iterator[tuple[Lab, Server]]:
    """Have a cluster, and an MLflow server that its nodes reach."""
    with small_disk(folder / "runs", megabytes=512) as storage, Nodes(folder) as cluster:
        cluster.start("head", cpus=0)
        cluster.start("train-a", cpus=1)
        cluster.start("train-b", cpus=1)
        cluster.start("ingest-a", cpus=1, labels=["ingest=true"])
        (storage / "mlflow.db").touch()
        with Server(storage, host=cluster.outside) as server:
            yield Lab(cluster, make_images(folder / "images", classes=2, per_class=13), server.uri), server


def soak(lab: Lab, server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Disturb a run, run another undisturbed, and return the faults and what the first run lost."""
    random_ = random.Random(arguments.seed)
    kinds = [arguments.kinds[number % len(arguments.kinds)] for number in range(arguments.faults)]
    random_.shuffle(kinds)
    run = Soak(lab, server, lab.recipe("disturbed", arguments.epochs, EVERY_STEPS))
    wait_for(lambda: saved(lab) > 0, SECONDS)
    faults: list[dict[str, Any]] = []
    for kind in kinds:
        time.sleep(random_.uniform(*PAUSE))
        assert run.driver.poll() is None, f"the run ended after {len(faults)} faults: give it more --epochs"
        faults.append(asdict(strike(run, kind, random_)))
        print(faults[-1], flush=True)
    wait_for(lambda: run.driver.poll() is not None, 3 * SECONDS)
    undisturbed = lab.recipe("undisturbed", arguments.epochs, EVERY_STEPS)
    ended(lab.cluster.run("pretrain", *undisturbed, "--address", lab.cluster.address), 3 * SECONDS)
    return {"faults": faults, "exit_code": run.driver.returncode, **compare(lab)}


def strike(run: Soak, kind: str, random_: random.Random) -> Fault:
    """Do one thing to the run, and wait until it is further than it was."""
    began, told = time.monotonic(), len(run.lab.printed("driver"))
    FAULTS[kind](run, random_)
    step = computed(run.lab)
    wait_for(lambda: saved(run.lab) > step, SECONDS, lambda: f"{kind}; see {run.lab.folder}/driver.log")
    seconds = time.monotonic() - began
    starts = re.findall(r"from the checkpoint of step (\d+)", run.lab.printed("driver")[told:])
    return Fault(kind, step, step - int(starts[0]) if starts else 0, round(seconds, 1))


def saved(lab: Lab) -> int:
    """Return how many steps of the run are in a checkpoint."""
    return lab.steps("disturbed")


def computed(lab: Lab) -> int:
    """Return how many steps of the run were computed: logged in MLflow, or on their way there."""
    folder = lab.storage / "disturbed"
    handle = json.loads((folder / "tracking.json").read_text())
    query = "select max(step) from metrics where key = 'loss' and run_uuid = ?"
    with closing(sqlite3.connect(lab.storage / "mlflow.db")) as database:
        logged = database.execute(query, [handle["run_id"]]).fetchone()[0] or 0
    buffer = Path(handle["buffer_path"])
    waiting = re.findall(r'"step": (\d+)', "".join(line for line in buffer.open() if '"loss"' in line))
    return max([logged, *map(int, waiting)])


def compare(lab: Lab) -> dict[str, Any]:
    """Return what the disturbed run lost beside the undisturbed one."""
    run, losses = lab.tracked("disturbed")
    _, expected = lab.tracked("undisturbed")
    steps = [step for step, _ in losses]
    return {
        "steps": len(expected),
        "missing": len(set(step for step, _ in expected) - set(steps)),
        "duplicated": len(steps) - len(set(steps)),
        "different": len(set(losses) - set(expected)),
        "status": run.info.status,
        "restarts": int(run.data.tags["restarts"]),
    }


def table(faults: list[dict[str, Any]]) -> str:
    """Return the faults by kind."""
    rows = []
    for kind in dict.fromkeys(fault["kind"] for fault in faults):
        of_kind = [fault for fault in faults if fault["kind"] == kind]
        repeated, seconds = ([fault[name] for fault in of_kind] for name in ("repeated", "seconds"))
        rows.append(
            [
                getattr(Soak, kind).__doc__,
                len(of_kind),
                len(of_kind),
                "-".join(map(str, sorted({min(repeated), max(repeated)}))),
                f"{median(seconds):.0f} ({min(seconds):.0f}-{max(seconds):.0f})",
            ]
        )
    return markdown_table(("fault", "tried", "recovered", "steps computed again", "seconds until it was further"), rows)


if __name__ == "__main__":
    main()
