"""What every benchmark prints and writes: its table, and the machine that the figures belong to."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("torch", "torchvision", "timm", "ray", "pillow", "opencv-python-headless", "pyarrow", "numpy")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def cpu_name() -> str:
    """Return the processor's name as Linux states it, elsewhere its architecture."""
    return next(_cpu_lines("model name"), platform.machine())


def cpu_features() -> list[str]:
    """Return which of the instruction sets that matter here the processor has; empty where it cannot be told."""
    flags = next(_cpu_lines("flags"), "").split()
    return [feature for feature in CPU_FEATURES if feature in flags]


def _cpu_lines(field: str) -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return (line.split(":", 1)[1].strip() for line in lines if line.startswith(field))


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; numbers must be formatted already."""
    columns = [str(cell) for cell in header]
    lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(page: str, name: str, text: str) -> str:
    """Return a page with a text between its marks `<!-- NAME -->` and `<!-- end -->`, in place of what was there.

    Raises:
        ValueError: the page has no such marks.
    """
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"there is no place for {name!r}: <!-- {name} --> and <!-- end -->")
    return marks.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def write_results(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a benchmark, and the machine, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
