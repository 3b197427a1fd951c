"""Drive a pretraining run: check, read the images, start the workers, close the books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray.train

from lodisc.encoder import require_known
from pipelines.data.run_images import RunImages, images_for, load_images, sample_order, views_from_last_checkpoint
from pipelines.run.config import PretrainConfig
from pipelines.run.folder import FINISHED, claimed, named, open_run
from pipelines.run.nodes import require_shared
from pipelines.run.progress import Style, terminal_style
from pipelines.tracking.model import keep_encoder
from pipelines.tracking.runs import open_tracking
from pipelines.tracking.store import store_warming
from pipelines.training.driver import drive
from pipelines.training.placement import Plans
from pipelines.training.pretraining import PretrainJob
from pipelines.training.timing import WARM_UP


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run leaves.

    Attributes:
        checkpoint: the last checkpoint's folder, local or URI.
        run_dir: the run's folder.
        run_id: the MLflow run.
        tracking_uri: the MLflow store.
        metrics: of the last report.
    """

    checkpoint: str
    run_dir: str
    run_id: str
    tracking_uri: str
    metrics: dict[str, Any]


def pretrain(
    config: PretrainConfig,
    *,
    images: RunImages | None = None,
    parent_run_id: str | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> PretrainResult:
    """Pretrain an encoder on the images of `config.data` and keep it under `config.storage`.

    Ray must be running. Interrupted or failed, the run continues with `resume`.

    Args:
        config: of the run.
        images: what `load_images` gave for this config or another one with the same `data`.
        parent_run_id: the MLflow run of the sweep that this is a trial of. A trial prints nothing and leaves its model
            to the checkpoint.
        callbacks: told of every checkpoint, with the step, the epoch and whatever scores were taken.

    Raises:
        ValueError: the name is in use, the images cannot be read, or the cluster is too small for the workers.
        NonFiniteLossError: training diverged.
        CalledAwayError: the process was told to end by SIGTERM.
    """
    config = named(config)
    with claimed(config):
        return _pretrain(config, images, parent_run_id, callbacks)


def _pretrain(
    config: PretrainConfig,
    images: RunImages | None,
    parent_run_id: str | None,
    callbacks: Sequence[ray.train.UserCallback],
) -> PretrainResult:
    # What can be refused is refused first, and in milliseconds: the name, the cluster's size, the storage.
    require_known(config.encoder)
    folder = open_run(config)
    plans = Plans(config.compute, config.optim.batch_size)
    require_shared(config.storage)
    # Every image is decoded once, to know which can be used: the longest wait before a run. MLflow, which takes seconds
    # to import, is had meanwhile. The trials of a sweep share what the sweep has read.
    if images is None:
        with store_warming(config.tracking, config.storage):
            images = load_images(config)
    else:
        images = images_for(images, config)
    steps_per_epoch = sample_order(images.training, config).steps_per_epoch
    _refuse_long_profile(config, steps_per_epoch * config.optim.epochs - folder.finished_steps())
    # From here on there is a run: in MLflow, and in its folder a config that `--resume` compares.
    datasets = {"views": views_from_last_checkpoint(config, folder, images), **images.decoded}
    run = open_tracking(config, folder, images.fingerprints, parent_run_id)
    style: Style = "nothing" if parent_run_id else terminal_style()
    job = PretrainJob(config, steps_per_epoch, run, folder, style)
    result = drive(job, datasets, plans, callbacks)
    assert result.checkpoint is not None, "the last step saves a checkpoint"
    done = PretrainResult(
        checkpoint=result.checkpoint.path,
        run_dir=folder.path,
        run_id=run.run_id,
        tracking_uri=run.uri,
        metrics=result.metrics or {},
    )
    if parent_run_id is None:
        keep_encoder(run, done.run_dir)
    # The very last: until it is there the run can be resumed, and this be done again.
    folder.write_json(FINISHED, asdict(done))
    return done


def _refuse_long_profile(config: PretrainConfig, steps: int) -> None:
    if config.profile and config.profile + WARM_UP > steps:
        raise ValueError(
            f"profile: {config.profile} steps and {WARM_UP} before them to warm up are more than the {steps} that the "
            "run still has"
        )
