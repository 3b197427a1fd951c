"""The options of `lodisc ui`, to be had without MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from lodisc.bounds import bounds


@dataclass(frozen=True, kw_only=True)
class UIConfig:
    """What to show, and where.

    Attributes:
        storage: folder that holds the runs.
        port: of the pages' address.
        host: of the pages' address; 127.0.0.1 is reached from this machine only.
    """

    storage: str = "runs"
    port: int = 5000
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        bounds(self, port="in [1, 65535]")
