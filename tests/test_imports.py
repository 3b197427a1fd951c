"""What must be had without the packages that take seconds to import, in a process of its own each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.environment import REPOSITORY

COMMAND_LINE = (
    "cluster.cli cluster.options tuning.config lodisc.config pipelines.run.config pipelines.data.options "
    "pipelines.tracking.options pipelines.evaluation.options pipelines.training.options pipelines.takeaway.options "
    "pipelines.demo.options"
)
COORDINATORS = (
    "cluster.worker pipelines.data.stream pipelines.data.sources pipelines.data.verify pipelines.training.placement "
    "lodisc.views tuning.trial"
)


@pytest.mark.parametrize(
    ("modules", "packages"),
    [
        (COMMAND_LINE, {"torch", "timm", "ray", "mlflow", "pandas"}),  # `lodisc COMMAND --help`
        (COORDINATORS, {"torch", "timm", "mlflow"}),  # processes that check images and split views
        ("pipelines.run.causes", {"torch", "ray"}),  # the last line of a run that fails
    ],
)
def test_modules_need_no_slow_package(modules: str, packages: set[str]) -> None:
    script = f"import sys, {', '.join(modules.split())}; print(*({packages} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
