"""Drive a pretraining run: check, read the images, start the workers, close the books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from pipelines import tracking
from pipelines.checkpoint import load_encoder
from pipelines.config import PretrainConfig, to_dict
from pipelines.images import RunImages, images_for, load_images, sample_order, views_from_last_checkpoint
from pipelines.profile import WARM_UP
from pipelines.progress import Style, terminal_style
from pipelines.resources import node_resources, plan_workers
from pipelines.run_folder import FINISHED, NamedConfig, RunFolder, named, open_run
from pipelines.train_loop import NonFiniteLossError, TrainJob, train_worker


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
    """
    config = named(config)
    folder = open_run(config)
    scaling = plan_workers(config.compute, node_resources())
    images = load_images(config) if images is None else images_for(images, config)
    steps_per_epoch = sample_order(images.training, config).steps_per_epoch
    _refuse_long_profile(config, steps_per_epoch * config.optim.epochs - folder.finished_steps())
    datasets = {"views": views_from_last_checkpoint(config, folder, images), **images.decoded}
    run = open_tracking(config, folder, images.fingerprints, parent_run_id)
    style: Style = "nothing" if parent_run_id else terminal_style()
    job = TrainJob(config, steps_per_epoch, run, style)
    result = fit(train_worker, job, run, folder, datasets, scaling, config.checkpoint.keep, callbacks)
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
    folder.write_json(FINISHED, asdict(done))
    return done


def _refuse_long_profile(config: PretrainConfig, steps: int) -> None:
    if config.profile and config.profile + WARM_UP > steps:
        raise ValueError(
            f"profile: {config.profile} steps and {WARM_UP} before them to warm up are more than the {steps} that the "
            "run still has"
        )


class TrackedConfig(NamedConfig, Protocol):
    """The config of a run that MLflow keeps."""

    @property
    def tracking(self) -> tracking.TrackingConfig: ...


def open_tracking(
    config: TrackedConfig, folder: RunFolder, fingerprints: dict[str, str], parent_run_id: str | None = None
) -> tracking.RunHandle:
    """Create the MLflow run, or reopen the one that the folder names."""
    if config.resume:
        return tracking.resume_run(tracking.RunHandle(**folder.read_json("tracking.json")))
    run = tracking.create_run(
        config.tracking, config.storage, folder.name, to_dict(config), fingerprints, parent_run_id
    )
    folder.write_json("tracking.json", asdict(run))
    folder.write_config(config)
    return run


def fit(
    worker: Callable[[dict[str, Any]], None],
    job: Any,
    run: tracking.RunHandle,
    folder: RunFolder,
    datasets: dict[str, Any],
    scaling: ray.train.ScalingConfig,
    keep: int,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> ray.train.Result:
    """Run the workers to the end and record in MLflow how it ended.

    Args:
        worker: what each worker runs; it is given {"job": job}.
        job: what the driver hands to every worker.
        run: the MLflow run.
        folder: of the run.
        datasets: by the name that workers ask for; "views" is split among them.
        scaling: the workers' placement.
        keep: how many checkpoints stay on disk.
        callbacks: told of every checkpoint.
    """
    options = ray.data.ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        scaling_config=scaling,
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=["views"], execution_options=options),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=folder.storage,
            callbacks=list(callbacks),  # type: ignore[arg-type]  # of Train V2
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=keep),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # of Train V2
        ),
    )
    status = "FAILED"
    try:
        result = trainer.fit()
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except ray.train.WorkerGroupError as error:
        divergence = _divergence(error)
        if divergence is None:
            raise
        raise divergence from error
    finally:
        tracking.finish_run(run, status)
    return result


def keep_encoder(run: tracking.RunHandle, run_dir: str) -> None:
    """Log the encoder of a run's last checkpoint to MLflow as a model that can be registered and served."""
    encoder, about = load_encoder(run_dir)
    size = about["config"]["encoder"]["image_size"]
    tracking.log_encoder(run, encoder, np.zeros((2, 3, size, size), dtype=np.float32), step=about["step"])


def _divergence(error: ray.train.WorkerGroupError) -> NonFiniteLossError | None:
    """Return a worker's own error, which speaks for itself, if it is that training diverged."""
    # Ray passes on the text of a worker's error; the exception itself does not survive the way.
    _, found, said = str(error).rpartition(f"{NonFiniteLossError.__name__}: ")
    return NonFiniteLossError(said.strip().splitlines()[0]) if found else None
