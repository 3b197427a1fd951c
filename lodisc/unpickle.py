"""Files that torch wrote, read without running anything that is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def load_plain(path: Path) -> Any:
    """Read a file of `torch.save` to the CPU. Only tensors and plain values are ever unpickled.

    Raises:
        ValueError: the file is damaged, or asks for anything else, which is then not run; in one line.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own message tells how to load it nevertheless, code and all.
        raise ValueError(
            "it is damaged, or holds more than tensors and plain values; as that may be code, nothing in it was run"
        ) from error
    except Exception as error:  # zip, storage and unpickler raise whatever they like at damaged data
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"it is damaged: {reason[0]}") from error
