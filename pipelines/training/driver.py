"""Run the workers of a run to its last step, through the loss of workers and of nodes.

Every start of the workers is a run of Ray Train of its own, from the last whole checkpoint. Ray Train could start
them again by itself, but then only with a number of workers that need not divide the batch, without telling a run that
diverges from a machine that dies, and counting against the run what befell it days ago.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
import ray.data
import ray.train
from ray.train._internal.session import get_session
from ray.train.torch import TorchTrainer

from lodisc.distributed import rank
from pipelines.run.causes import CalledAwayError, NonFiniteLossError, WorkersFailedError, explain, may_help, name_cause
from pipelines.run.folder import LEAVE, RunFolder
from pipelines.tracking.runs import finish_run
from pipelines.training.learner import Job, Shards
from pipelines.training.loop import train_worker
from pipelines.training.placement import Placement, Plans, ReleasePlacement
from pipelines.training.preemption import leaving_on_sigterm

# In which Ray Train lists a run's checkpoints, written in place: a process that is killed or a disk that is full leaves
# half of it. Here a whole checkpoint is all it takes.
REGISTER = "checkpoint_manager_snapshot.json"
NO_RETRIES = ray.train.FailureConfig(  # type: ignore[call-arg]  # of Train V2
    max_failures=0, max_preemption_failures=0, controller_failure_limit=0
)


def drive(
    job: Job,
    datasets: dict[str, Any],
    plans: Plans,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> ray.train.Result:
    """Run the workers of a run to its end, and record in MLflow how it ended.

    Args:
        job: of the run.
        datasets: by the name that workers know them by. Each time workers start, "views" is called for the samples that
            are still to come, which are split among them; of the others each sees all.
        plans: how many workers there may be, and where.
        callbacks: told of every checkpoint.

    Raises:
        NonFiniteLossError: training diverged.
        CalledAwayError: the process was told to end.
        WorkersFailedError: the workers failed more often in a row than `compute.restarts`, or would fail so again.
    """
    status, failures = "FAILED", Failures(plans.compute.restarts)
    trainer = partial(_trainer, job, callbacks)
    result = None
    try:
        with leaving_on_sigterm(job.folder) as told:
            while result is None or job.folder.finished_steps() < job.total_steps:
                result = _run_workers(trainer, job, datasets, plans, failures, told)
        status = "FINISHED"
    except (KeyboardInterrupt, CalledAwayError):
        status = "KILLED"
        raise
    finally:
        finish_run(job.run, status, {"restarts": str(failures.total)})
    return result


def _run_workers(
    trainer: Callable[[Placement, Sequence[Shards]], TorchTrainer],
    job: Job,
    datasets: Mapping[str, Any],
    plans: Plans,
    failures: Failures,
    told: threading.Event,
) -> ray.train.Result | None:
    """Run workers from the last checkpoint until they are done, leave or fail; return None where they failed."""
    folder = job.folder
    # What called the last workers away would send these home, and what Ray Train noted of them would be taken up again.
    folder.remove(LEAVE)
    folder.remove(REGISTER)
    for name in folder.cut_off():
        print(f"{folder.path}/{name} is cut off or damaged, and passed over", file=sys.stderr, flush=True)
    # Waits until there is room: a lost node may come back, and an autoscaler needs minutes.
    placement = plans.choose(told)
    try:
        with plans.growing(placement, folder), _split(datasets, placement.workers) as shards:
            result = _beside(trainer(placement, shards), folder)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        failures.count(error, folder.finished_steps())
        return None
    # They ended without an error: at the last step, by divergence, or because they were called away; where that was for
    # more workers to come, the next ones start from the checkpoint that these have saved.
    diverged = result.return_value  # type: ignore[attr-defined]  # of Train V2
    if diverged is not None:
        raise NonFiniteLossError(diverged)
    if told.is_set() and folder.finished_steps() < job.total_steps:
        raise CalledAwayError(f"the run was told to end and did, at step {folder.finished_steps()}")
    return result


def _beside(trainer: TorchTrainer, folder: RunFolder) -> ray.train.Result:
    """Run Ray Train's `fit` beside this thread.

    In the main thread it would take Ctrl-C for itself, and keep it: the run would end with exit code 0, or not at all.
    """
    outcome: list[ray.train.Result | BaseException] = []

    def run() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        with suppress(OSError):
            folder.write(LEAVE, "Ctrl-C")
        print(
            f"interrupted: the workers save a checkpoint; the same command with --name {folder.name} --resume goes on",
            file=sys.stderr,
            flush=True,
        )
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


class Failures:
    """Counts how often in a row the workers failed at the same step.

    Args:
        limit: how often they may.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.in_a_row, self.total, self.step = limit, 0, 0, 0
        # Of Ray Tune, in the process of a trial. It is forgotten when the trial is stopped.
        self.session = get_session()

    def count(self, error: Exception, step: int) -> None:
        """Count a failure after `step` saved steps, and say what goes on.

        Raises:
            WorkersFailedError: it is one too many, or the same would happen again.
            CalledAwayError: Ray Tune has stopped the trial that this run is, and its workers died of that.
        """
        if self.session is not None and self.session.stop_event.is_set():
            raise CalledAwayError("Ray Tune has stopped the trial") from error
        self.in_a_row = self.in_a_row + 1 if step == self.step else 1
        self.step, self.total = step, self.total + 1
        if self.in_a_row > self.limit or not may_help(error, began=step > 0):
            times = f" {self.in_a_row} times in a row" if self.in_a_row > 1 else ""
            resumed = f"--resume continues it from step {step}" if step else "--resume begins it again"
            raise WorkersFailedError(f"the workers failed{times}: {explain(error)}; {resumed}") from error
        print(
            f"the workers failed: {name_cause(error)}; going on from step {step} (try {self.in_a_row} of {self.limit} "
            "that compute.restarts allows)",
            file=sys.stderr,
            flush=True,
        )


def _trainer(
    job: Job,
    callbacks: Sequence[ray.train.UserCallback],
    placement: Placement,
    shards: Sequence[Shards],
) -> TorchTrainer:
    # Bound to the function, not given as its config: that the controller would read too, and import timm for it.
    train = partial(_returning_divergence, job, shards)
    return TorchTrainer(
        train,  # type: ignore[arg-type]  # Train V2 hands on what it returns
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.resources,
            label_selector=placement.labels or None,  # type: ignore[call-arg]  # of Train V2
        ),
        run_config=ray.train.RunConfig(
            name=job.folder.name,
            storage_path=job.folder.storage,
            callbacks=[*callbacks, ReleasePlacement()],  # type: ignore[list-item]  # of Train V2
            failure_config=NO_RETRIES,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # of Train V2
        ),
    )


@contextmanager
def _split(datasets: Mapping[str, Any], workers: int) -> Iterator[list[Shards]]:
    """Have the shards of workers inside the block.

    Unless it is ended, a stream whose workers are gone draws on, with the CPUs that the next workers' stream waits for.
    """
    shards = shards_of(datasets, workers)
    try:
        yield shards
    except KeyboardInterrupt:  # The workers have been told to leave, and read until they do.
        raise
    except BaseException:
        _end_stream(shards)
        raise
    _end_stream(shards)


def _end_stream(shards: Sequence[Shards]) -> None:
    ray.kill(shards[0]["views"]._coord_actor)  # type: ignore[attr-defined]  # of a stream that is split


def shards_of(datasets: Mapping[str, Any], workers: int) -> list[Shards]:
    """Return what each worker reads of the datasets, see `drive`.

    Ray Train would do the same, but in a process of its own that it starts after the workers. Split here, the views
    have their process while workers still import torch, and are drawn in those that have checked the images.
    """
    views = datasets["views"]()
    views.context.execution_options.preserve_order = True
    whole = {name: dataset.iterator() for name, dataset in datasets.items() if name != "views"}
    return [{"views": share, **whole} for share in views.streaming_split(workers, equal=True)]


def _returning_divergence(job: Job, shards: Sequence[Shards]) -> str | None:
    """Run a worker on its own shards, and return what is wrong where training diverged.

    Raised, it would be one failure among those of machines and networks.
    """
    try:
        train_worker(job, shards[rank()])
    except NonFiniteLossError as error:
        return str(error)
    return None
