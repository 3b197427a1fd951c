"""Show what a checkpoint's encoder looks at: its pivots, the views that it was trained on, what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from lodisc.config import ModelConfig, ViewConfig
from lodisc.encoder import Encoder
from pipelines.data.examples import Photograph, choose
from pipelines.pictures import Sheet, draw
from pipelines.run.checkpoint import load_encoder
from pipelines.run.files import write_whole
from pipelines.takeaway.options import ShowConfig
from pipelines.takeaway.pivots import PivotSheets


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
