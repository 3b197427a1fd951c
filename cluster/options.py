"""The options of the commands about clusters: to be had without torch and Ray, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass

from lodisc.bounds import bounds
from pipelines.run.config import DataConfig, PretrainConfig


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(PretrainConfig):
    """The run that a cluster is checked for, described as for `pretrain`. Without `data.images` none are looked for."""

    data: DataConfig | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class LeaveConfig:
    """Which node leaves, and when.

    Attributes:
        within: seconds until the machine is taken.
        address: of the cluster that this machine is a node of.
    """

    within: int = 100
    address: str = "auto"

    def __post_init__(self) -> None:
        bounds(self, within="at least 1")
