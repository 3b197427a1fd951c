"""A run as training leaves it: a checkpoint of a tiny model, and its record in a real MLflow store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric

from lodisc.config import EncoderConfig, ModelConfig
from lodisc.model import LoDisc
from pipelines.run.checkpoint import FILE
from pipelines.run.config import DataConfig, PretrainConfig, to_dict

STEPS, STEPS_PER_EPOCH = 40, 20


@dataclass(frozen=True)
class TinyRun:
    """Where a run is.

    Attributes:
        checkpoint: its only checkpoint folder.
        run_id: in the store.
        uri: of the store.
    """

    checkpoint: Path
    run_id: str
    uri: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)


def make_run(folder: Path, data: DataConfig, name: str = "tiny", **model: Any) -> TinyRun:
    """Make a run of 40 steps, with a store of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    uri, run_id = _record(folder, name)
    return TinyRun(write_checkpoint(folder, data, uri, run_id, name, **model), run_id, uri)


def write_checkpoint(
    folder: Path, data: DataConfig, uri: str = "http://127.0.0.1:9", run_id: str = "1", name: str = "tiny", **model: Any
) -> Path:
    """Write a checkpoint whose encoder, momentum encoder and initial encoder all differ, and return its folder.

    Without an address of a store it names one that does not answer.
    """
    config = PretrainConfig(
        name=name,
        data=data,
        encoder=EncoderConfig(arch="test_vit", image_size=32, patch_size=8, depth=2),
        model=ModelConfig(**{"hidden_dim": 16, "output_dim": 8, **model}),
    )
    torch.manual_seed(config.seed + 1)
    trained = LoDisc(config.encoder, config.model)
    with torch.no_grad():
        for parameter in trained.momentum_encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    checkpoint = folder / f"step-{STEPS:08d}"
    checkpoint.mkdir(parents=True)
    about = {"step": STEPS, "config": to_dict(config), "run_id": run_id, "tracking_uri": uri}
    torch.save({"model": trained.state_dict(), **about}, checkpoint / FILE)
    return checkpoint


def _record(folder: Path, name: str) -> tuple[str, str]:
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("test", artifact_location=(folder / "artifacts").as_uri())
    run_id: str = client.create_run(experiment, run_name=name).info.run_id
    steps = range(1, STEPS + 1)
    points = [Metric("loss", 3 - step / STEPS, 1000 + step, step) for step in steps]
    points += [Metric("epoch", step / STEPS_PER_EPOCH, 1000 + step, step) for step in steps]
    points += [Metric("contrastive/top1", 2.0 * step, 1000 + step, step) for step in steps]
    points += [Metric("schedule/learning_rate", 1e-3 / step, 1000 + step, step) for step in steps]
    points += [Metric("eval/knn/fine", 10.0 + step, 1000 + step, step) for step in (0, 20, 40)]
    points += [Metric("system/cpu_utilization_percentage", 50, 1000, 7)]
    client.log_batch(run_id, metrics=points)
    client.set_terminated(run_id)
    return uri, run_id
