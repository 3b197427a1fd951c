"""The environment of processes that know nothing of the tests' own Ray."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def environment_outside() -> dict[str, str]:
    """Return this process's environment without what joining Ray left there, and with this repository's modules."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return ours | {"PYTHONPATH": str(REPOSITORY)}
