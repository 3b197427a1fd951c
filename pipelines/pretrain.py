"""Drive a pretraining run: check, read the images, start the workers, close the books."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from pipelines import tracking
from pipelines.checkpoint import load_encoder
from pipelines.config import PretrainConfig, to_dict
from pipelines.ingest import DrawViews, ImageStore, SampleOrder, eval_images, sample_stream
from pipelines.profile import WARM_UP
from pipelines.resources import plan_workers
from pipelines.run_folder import FINISHED, RunFolder, named, open_run
from pipelines.sources import fingerprint
from pipelines.train_loop import NonFiniteLossError, TrainJob, train_worker
from pipelines.verify import usable_images


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


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain an encoder on the images of `config.data` and keep it under `config.storage`.

    Ray must be running. Interrupted or failed, the run continues with `resume`.

    Raises:
        ValueError: the name is in use, the images cannot be read, or the cluster is too small for the workers.
        NonFiniteLossError: training diverged.
    """
    config = named(config)
    folder = open_run(config)
    scaling = plan_workers(config.compute, ray.cluster_resources())
    images = usable_images(config.data.images)
    order = SampleOrder(config.seed, images.count(), config.optim.batch_size)
    if order.steps_per_epoch == 0:
        raise ValueError(
            f"optim.batch_size ({order.batch_size}) exceeds the {order.images} usable images of {config.data.images}"
        )
    _refuse_long_profile(config, order.steps_per_epoch * config.optim.epochs - folder.finished_steps())
    datasets = {
        "views": views_from_last_checkpoint(config, folder, images, order),
        "gallery": evaluation_images(config, images),
    }
    if config.data.eval_images:
        datasets["held_out"] = evaluation_images(config, usable_images(config.data.eval_images))

    run = open_tracking(config, folder)
    job = TrainJob(config, order.steps_per_epoch, run, interactive=sys.stderr.isatty())
    return fit(job, folder, datasets, scaling)


def _refuse_long_profile(config: PretrainConfig, steps: int) -> None:
    if config.profile and config.profile + WARM_UP > steps:
        raise ValueError(
            f"profile: {config.profile} steps and {WARM_UP} before them to warm up are more than the {steps} that the "
            "run still has"
        )


def views_from_last_checkpoint(
    config: PretrainConfig, folder: RunFolder, images: ray.data.Dataset, order: SampleOrder
) -> Callable[[], ray.data.Dataset]:
    """Return what Ray Train calls each time it starts a group of workers: the stream from where the run stands then."""
    draw = DrawViews(ImageStore.from_dataset(images), order, config.views, config.encoder.image_size)
    total = config.optim.epochs * order.steps_per_epoch
    return lambda: sample_stream(draw, folder.finished_steps(), total, config.compute.workers)


def evaluation_images(config: PretrainConfig, images: ray.data.Dataset) -> ray.data.Dataset:
    return eval_images(images, config.encoder.image_size, config.evaluation.max_images, config.seed)


def open_tracking(config: PretrainConfig, folder: RunFolder) -> tracking.RunHandle:
    """Create the MLflow run, or reopen the one that the folder names."""
    if config.resume:
        return tracking.resume_run(tracking.RunHandle(**folder.read_json("tracking.json")))
    fingerprints = {"dataset.fingerprint": fingerprint(config.data.images)}
    if config.data.eval_images:
        fingerprints["dataset.held_out_fingerprint"] = fingerprint(config.data.eval_images)
    run = tracking.create_run(config.tracking, config.storage, folder.name, to_dict(config), fingerprints)
    folder.write_json("tracking.json", asdict(run))
    folder.write_config(config)
    return run


def fit(job: TrainJob, folder: RunFolder, datasets: dict[str, Any], scaling: ray.train.ScalingConfig) -> PretrainResult:
    """Run the workers to the end and record how it ended."""
    options = ray.data.ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=scaling,
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=["views"], execution_options=options),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=folder.storage,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=job.config.checkpoint.keep),
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
        raise _cause(error) from error
    finally:
        tracking.finish_run(job.run, status)
    assert result.checkpoint is not None, "the last step saves a checkpoint"
    done = PretrainResult(
        checkpoint=result.checkpoint.path,
        run_dir=folder.path,
        run_id=job.run.run_id,
        tracking_uri=job.run.uri,
        metrics=result.metrics or {},
    )
    keep_encoder(job, done)
    folder.write_json(FINISHED, asdict(done))
    return done


def keep_encoder(job: TrainJob, done: PretrainResult) -> None:
    """Log the trained encoder to MLflow as a model that can be registered and served."""
    encoder, _ = load_encoder(done.run_dir)
    size = job.config.encoder.image_size
    tracking.log_encoder(job.run, encoder, np.zeros((2, 3, size, size), dtype=np.float32), step=job.total_steps)


def _cause(error: ray.train.WorkerGroupError) -> BaseException:
    """Return the worker's own error where it speaks for itself, Ray Train's otherwise."""
    # Ray passes on the text of a worker's error; the exception itself does not survive the way.
    _, found, said = str(error).rpartition(f"{NonFiniteLossError.__name__}: ")
    return NonFiniteLossError(said.strip().splitlines()[0]) if found else error
