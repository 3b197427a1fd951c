"""Give back what workers hold that fail while they start."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback


class ReleasePlacement(WorkerGroupCallback, ControllerCallback):
    """Removes the placement group of a run's workers when the run's controller ends.

    Ray Train does so itself but for workers that fail between their start and their first step: of those it keeps the
    placement group until the job ends, and workers that are started again wait for its room for ever.
    """

    def __init__(self) -> None:
        self.group: Any = None

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Called in the controller when the workers' processes are there."""
        self.group = ray.get(workers[0].execute_async(ray.util.get_current_placement_group))
        return {}

    async def before_controller_shutdown(self) -> None:
        """Called when the controller ends, for whatever reason."""
        if self.group is not None:
            ray.util.remove_placement_group(self.group)
