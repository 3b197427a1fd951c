"""One way to check the values of a config."""

from __future__ import annotations

import math
import re
from typing import Any

RANGE = re.compile(r"in \[(.+), (.+)([\])])")


def require(holds: object, message: str) -> None:
    """Raise ValueError with the message unless something holds."""
    if not holds:
        raise ValueError(message)


def bounds(config: object, section: str = "", /, **expected: str) -> None:
    """Refuse the fields of a config that are out of bounds; None is never refused.

    Args:
        config: whose fields they are.
        section: that stands before their names, with a dot, in messages.
        expected: by field "at least 1", "> 0", "in [0, 1]" or "in [0, 1)". Of a tuple each value must be so.

    Raises:
        ValueError: `section.field must be at least 1, got 0`.
    """
    for name, bound in expected.items():
        value = getattr(config, name)
        if not all(_lies(each, bound) for each in (value if isinstance(value, tuple | list) else (value,))):
            raise ValueError(f"{section}{name} must be {bound}, got {value!r}")


def _lies(value: Any, bound: str) -> bool:
    if value is None:
        return True
    if bound.startswith("at least "):
        return bool(value >= float(bound.removeprefix("at least ")))
    if bound.startswith("> "):
        return bool(value > float(bound.removeprefix("> ")))
    match = RANGE.fullmatch(bound)
    assert match, bound
    low, high = float(match[1]), float(match[2])
    return bool(low <= value <= high if match[3] == "]" else low <= value < high) and not math.isnan(value)
