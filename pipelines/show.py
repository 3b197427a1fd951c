"""Show what a checkpoint's encoder looks at: its pivots, the views that it was trained on, what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from lodisc.encoder import Encoder
from lodisc.model import ModelConfig
from lodisc.views import ViewConfig
from pipelines.checkpoint import find_checkpoint, load_encoder
from pipelines.files import write_whole
from pipelines.photographs import Photograph, choose, in_shards
from pipelines.pivot_sheets import PivotSheets
from pipelines.sheets import Sheet, draw


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """What to show, on which photographs.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        images: an image file; or a source, `SRC` or `SRC@SPLIT`, of which `count` images are taken.
        out: folder for the pictures.
        count: how many images of a source are shown, spread over its classes.
        seed: draws the images and their random views.
    """

    checkpoint: str
    images: str
    out: str
    count: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise ValueError(f"out must be a folder, {self.out} is a file")
        find_checkpoint(self.checkpoint)
        in_shards(self.images)

    @property
    def uses_ray(self) -> bool:
        """A few files need no cluster; shards are read by Ray."""
        return in_shards(self.images)


def show(config: ShowConfig) -> list[Path]:
    """Draw the pivots and the random views of each image, and a sheet with the pivots before and after training.

    Returns:
        The pictures' files: pivots-*.png, views-*.png and before-after.png. The last is left out, and said so, where
        the encoder's initial weights cannot be had any more.

    Raises:
        ValueError: there is no such checkpoint, or no image can be used.
    """
    photos = choose(config.images, config.count, config.seed)
    paths = []
    for sheet in [sheet for kind in run_sheets(config.checkpoint, photos, config.seed).values() for sheet in kind]:
        path = Path(config.out) / f"{sheet.name}.png"
        encoded = BytesIO()
        draw(sheet).save(encoded, format="PNG", optimize=True)
        write_whole(path, encoded.getvalue())
        print(f"written to {path}", flush=True)
        paths.append(path)
    return paths


def run_sheets(checkpoint: str, photos: Sequence[Photograph], seed: int) -> dict[str, list[Sheet]]:
    """Return the sheets of photographs: `pivots` and `views`, one an image each, and `before-after`, one or none."""
    encoder, about = load_encoder(checkpoint, momentum=True)
    model, views = ModelConfig(**about["config"]["model"]), ViewConfig(**about["config"]["views"])
    sheets = PivotSheets(encoder, model, views, about["step"], seed)
    numbered = list(enumerate(photos, start=1))
    untrained = load_untrained(checkpoint)
    return {
        "pivots": [sheets.pivots(number, photo) for number, photo in numbered],
        "views": [sheets.two_views(number, photo) for number, photo in numbered],
        "before-after": [] if untrained is None else [sheets.before_after(untrained, photos)],
    }


def load_untrained(checkpoint: str) -> Encoder | None:
    """Return a checkpoint's encoder as it was before training; None, which is said, where it cannot be had."""
    try:
        return load_encoder(checkpoint, untrained=True)[0]
    except Exception as error:  # a file that was moved, a hub that does not answer: all else can still be shown
        print(f"warning: the encoder before training cannot be made: {error}", flush=True)
        return None
