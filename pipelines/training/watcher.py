"""Watch a run from its first worker: curves every step, scores and pictures whenever there was a look."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from pipelines.run.progress import Progress
from pipelines.tracking.tracker import Tracker
from pipelines.training.learner import Job, Learner, Look
from pipelines.training.timing import StepTrace, Throughput, peak_flops


class Watcher:
    """The first worker's second duty. It reads the learner and never changes it."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self.job, self.learner = job, learner
        self.tracker = Tracker(job.run, learner.unsent)
        self.progress = Progress(job.total_steps, job.steps_per_epoch, learner.step, job.progress, job.task)
        self.throughput = Throughput(job.optim.batch_size, peak_flops(learner.device, learner.dtype))
        self.throughput.restart(learner.step)
        self.trace = StepTrace(job.profile, learner.step, self.tracker, self.progress.say) if job.profile else None
        if learner.step:
            self.progress.say(f"from the checkpoint of step {learner.step}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.trace:
            self.trace.close()
        self.progress.close()
        self.tracker.close()

    def log(self, metrics: dict[str, float]) -> None:
        """Add a point to the training curves."""
        step = self.learner.step
        steps = step - self.throughput.step
        metrics |= {f"time/{phase}": spent / steps for phase, spent in self.learner.stopwatch.seconds().items()}
        metrics |= self.throughput.rates(step, self.learner.flops_per_step or 0.0)
        self.tracker.log_metrics(metrics | {"epoch": step / self.job.steps_per_epoch}, step)
        rate = f"{metrics['throughput/images_per_second']:.0f} images/s"
        self.progress.show(step, f"{self.learner.summary(metrics)}  {rate}")

    def show(self, at: int, look: Look) -> None:
        """Log what a look at step `at` has found, and leave the time that it took out of both meters."""
        self.tracker.log_metrics(look.scores, at)
        self.progress.say(f"epoch {at // self.job.steps_per_epoch}{look.summary}")
        for name, picture in look.pictures.items():
            self.tracker.log_figure(picture, name)
        self.learner.stopwatch.seconds()
        self.throughput.restart(self.learner.step)

    def end_step(self) -> None:
        if self.trace:
            self.trace.step()
