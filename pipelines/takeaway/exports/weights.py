"""Weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

FILE = "model.safetensors"


def save_weights(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, with facts in its header, readable by whom a new file is readable by.

    safetensors' own `save_file` makes a file that its owner alone can read.
    """
    path.write_bytes(save(dict(weights), metadata={"format": "pt", **(facts or {})}))
