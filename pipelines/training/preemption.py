"""Being called away: workers that are told to leave save a checkpoint and go, and no step is lost.

Two can tell them: Ray, when a cloud or `lodisc leave` has announced that a node will be taken; and the run's driver,
by a file in the run's folder, when it is told to end itself or when there is room for more workers.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self

import torch
from ray.train.v2._internal.execution.context import get_train_context

from lodisc.distributed import average, rank
from pipelines.run.folder import LEAVE, RunFolder

SECONDS_BETWEEN_LOOKS = 1.0


class Summons:
    """Tells the workers, all at the same step, whether they are called away."""

    def __init__(self, folder: RunFolder, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._told, self._ended = threading.Event(), threading.Event()
        self._looking = threading.Thread(target=self._look, name="summons", daemon=True)

    def __enter__(self) -> Self:
        if rank() == 0:
            self._looking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def heard(self) -> bool:
        """Whether any worker was told to leave. All workers call it after the same step."""
        # Ray's own way to ask, `ray.train.get_preemption_info`, is a call to one actor by every worker for every step.
        told = self._told.is_set() or get_train_context().preemption_context.preemption_info is not None
        return bool(average(torch.tensor([float(told)], device=self._device)).item() > 0)

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            with suppress(OSError):  # A storage that does not answer may do so at the next look.
                if self._folder.has(LEAVE):
                    self._told.set()
                    return


@contextmanager
def leaving_on_sigterm(folder: RunFolder) -> Iterator[threading.Event]:
    """Inside the block SIGTERM calls the run's workers away; yields what is set once it came.

    A thread beside the main one, as a trial of a sweep is, cannot listen, and its process ends as it always did.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def leave(number: int, frame: FrameType | None) -> None:
        came.set()
        try:
            folder.write(LEAVE, "the run's driver was told to end")
        except OSError as error:
            print(f"the workers cannot be told to leave, as {folder.path} cannot be written: {error}", file=sys.stderr)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None is a handler that was not set from Python
