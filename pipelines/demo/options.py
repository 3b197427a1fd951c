"""The options of `lodisc demo`, to be had without torch and Ray, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lodisc.bounds import bounds
from pipelines.run.files import require_writable


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demonstration. Its defaults take some minutes on 2 CPU cores.

    Attributes:
        data: folder of the images, which are made where there is none.
        storage: folder that holds the runs.
        train_per_class: images of each class to train on.
        test_per_class: images of each class to score on.
        epochs: passes over the images; None leaves that to the recipe.
        seed: of the images and of both runs.
    """

    data: str = "demo-images"
    storage: str = "runs"
    train_per_class: int = 60
    test_per_class: int = 20
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        bounds(self, train_per_class="at least 2", test_per_class="at least 2", epochs="at least 1", seed="at least 0")
        if not Path(self.data).exists():
            require_writable("data", self.data)
        require_writable("storage", self.storage)
