"""Runs on a cluster that is to be broken: how they are started, how far they are, what MLflow has of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.run.folder import RunFolder
from tests.cluster.nodes import Node, Nodes, wait_for

SECONDS = 300.0  # the longest that anything here may take


class Lab:
    """A cluster and what runs on it.

    Args:
        cluster: whose nodes share its folder.
        images: to train on.
        uri: of the MLflow server; None is a database in the storage.
    """

    def __init__(self, cluster: Nodes, images: Path, uri: str | None = None) -> None:
        self.cluster, self.images, self.uri = cluster, images, uri
        self.folder = cluster.folder
        self.storage = self.folder / "runs"

    def recipe(self, name: str, epochs: int, every_steps: int = 1, **compute: Any) -> list[str]:
        """Return the options of a run of two workers, three steps an epoch with 26 images."""
        tree = {
            "data": {"images": str(self.images)},
            "encoder": {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "depth": 2},
            "model": {"hidden_dim": 64, "output_dim": 32, "local_view": "tokens"},
            "optim": {"epochs": epochs, "batch_size": 8, "base_lr": 0.01, "warmup_epochs": 1, "precision": "fp32"},
            "checkpoint": {"every_steps": every_steps},
            "evaluation": {"every_epochs": 1000},
            "compute": {"workers": 2, **compute},
            "storage": str(self.storage),
            "tracking": {"uri": self.uri},
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree))
        return ["--config", str(file), "--name", name]

    def outside(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `lodisc ARGUMENTS` on a machine that is no node."""
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *arguments],
            env=self.cluster.environment,
            cwd=self.folder,
            text=True,
            # A shell has its background jobs ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, **options},
        )

    def trainers(self) -> list[str]:
        """Return the names of the nodes that may train."""
        return [name for name in self.cluster.nodes if not name.startswith(("head", "ingest"))]

    def printed(self, name: str) -> str:
        """Return what is in a log of the folder."""
        return (self.folder / f"{name}.log").read_text()

    def steps(self, name: str) -> int:
        """Return how many steps of a run are saved."""
        return RunFolder(str(self.storage / name)).finished_steps()

    def reach(self, name: str, steps: int, process: subprocess.Popen[str]) -> None:
        wait_for(lambda: self.steps(name) >= steps, SECONDS, lambda: f"{name} ended: {process.poll()}")

    def tracked(self, name: str) -> tuple[Run, list[tuple[int, float]]]:
        """Return a run as MLflow has it, and its losses by step as often as they were logged."""
        client = MlflowClient(f"sqlite:///{self.storage}/mlflow.db")
        experiment = client.get_experiment_by_name("lodisc")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{name}'")
        history = client.get_metric_history(run.info.run_id, "loss")
        return run, [(point.step, point.value) for point in history]


def ended(process: subprocess.Popen[str], seconds: float = SECONDS) -> str:
    """Return what a process printed, once it has ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def workers_of(node: Node) -> int:
    return len(node.find("RayTrainWorker"))
