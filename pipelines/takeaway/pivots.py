"""What a run's momentum encoder sees in photographs: its pivots, the views it trains on, what training changed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw

from lodisc.config import ModelConfig, ViewConfig
from lodisc.encoder import Encoder
from lodisc.local_view import mask_pixels
from lodisc.normalise import normalise
from lodisc.pivots import keep_patches, pivot_scores
from lodisc.views import IMAGENET_MEAN, Crop, TwoViews, eval_view
from pipelines.data.decode import decode_image, load_image, open_image, upright_size
from pipelines.data.examples import Photograph
from pipelines.data.samples import seed_of
from pipelines.pictures import GAP, PAPER, Row, Sheet, Tile, heat_map, kept_patches, picture_of

SIDE = 384  # of a picture in pixels, as nearly as whole patches allow
MOST_LAYERS = 6
OUTLINE = (255, 176, 0)
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
BLANK = (244, 245, 247)  # where a picture shows nothing


@dataclass(frozen=True)
class Seen:
    """What an encoder sees in a batch of B images of N patches.

    Attributes:
        scores: (B, N) float32, the pivot scores.
        layers: (L, B, N) float32, the log attention of each layer's class token to the patches.
        kept: (B, K) int64, the patches of the local view.
    """

    scores: torch.Tensor
    layers: torch.Tensor
    kept: torch.Tensor


@torch.inference_mode()
def see(encoder: Encoder, images: Sequence[np.ndarray], model: ModelConfig, seed: int = 0) -> Seen:
    """Score images as training does.

    Args:
        encoder: in evaluation mode, on the CPU.
        images: B arrays (3, H, W) uint8.
        model: how pivots are scored and how many are kept.
        seed: of random pivots.
    """
    batch = normalise(torch.from_numpy(np.stack(images)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, scores = pivot_scores(encoder, batch, model.pivots)
    _, layers = encoder.forward_with_attention(batch)
    return Seen(scores, layers, keep_patches(scores, model.mask_ratio))


@dataclass(frozen=True)
class PivotSheets:
    """Draws the sheets of one run.

    Photographs are scored at the size that the encoder sees, and drawn finer.

    Attributes:
        encoder: the momentum encoder, whose attention places the pivots.
        model: the objective.
        views: the two random views.
        step: finished steps of training.
        seed: draws the views.
    """

    encoder: Encoder
    model: ModelConfig
    views: ViewConfig
    step: int
    seed: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.encoder.grid

    @property
    def image_size(self) -> int:
        return self.grid[0] * self.encoder.patch_size[0]

    @property
    def side(self) -> int:
        """Side of a picture in pixels: whole pixels for a patch."""
        return self.grid[0] * max(1, round(SIDE / self.grid[0]))

    def pivots(self, number: int, photo: Photograph) -> Sheet:
        """Show a photograph, its scores, the patches that are kept, and the attention of single layers."""
        picture, small = self._evaluation_view(photo)
        seen = see(self.encoder, [small], self.model, self.seed)
        layers = chosen_layers(len(seen.layers))
        row = Row(self._scored(picture, "photograph", seen, 0), self.side)
        attention = [
            Tile(
                heat_map(picture, seen.layers[layer, 0].numpy(), self.grid),
                f"layer {layer + 1}",
                _contrast(seen.layers[layer, 0]),
            )
            for layer in layers
        ]
        small_side = (3 * self.side + 2 * GAP - (MOST_LAYERS - 1) * GAP) // MOST_LAYERS
        return Sheet(
            f"pivots-{number:02d}-{photo.stem}",
            photo.label or photo.stem,
            self._about(len(seen.layers)),
            [row, Row(attention, small_side)],
        )

    def two_views(self, number: int, photo: Photograph) -> Sheet:
        """Show the two random views of a photograph that training would compare, and their local views."""
        crops, pictures, small = self._random_views(photo)
        seen = see(self.encoder, small, self.model, self.seed)
        rows = []
        for which, (crop, picture) in enumerate(zip(crops, pictures, strict=True)):
            outlined = Tile(_outlined(photo, crop, self.side), f"crop of view {which + 1}")
            view, scores, _ = self._scored(picture, f"view {which + 1}", seen, which)
            local = Tile(self._local_view(picture, seen.kept[which]), f"local view ({self.model.local_view})")
            rows.append(Row([outlined, view, scores, local], self.side))
        form = {
            "tokens": "the other patches are left out of the sequence",
            "pixels": "the other patches are set to the mean colour",
        }[self.model.local_view]
        about = f"{seen.kept.shape[1]} of {seen.scores.shape[1]} patches are kept in a local view; {form}."
        return Sheet(f"views-{number:02d}-{photo.stem}", photo.label or photo.stem, about + self._unused(), rows)

    def before_after(self, untrained: Encoder, photos: Sequence[Photograph]) -> Sheet:
        """Show the pivots of photographs before the first step of training beside those after it."""
        pictures, small = zip(*(self._evaluation_view(photo) for photo in photos), strict=True)
        before, after = (see(encoder, small, self.model, self.seed) for encoder in (untrained, self.encoder))
        rows = []
        for place, (photo, picture) in enumerate(zip(photos, pictures, strict=True)):
            _, *old = self._scored(picture, "", before, place)
            _, *new = self._scored(picture, "", after, place)
            tiles = [Tile(picture, "photograph", photo.label or photo.stem), *old, *new]
            titles = ("photograph", "before training", "kept", f"after {self.step} steps", "kept")
            rows.append(
                Row(
                    [
                        replace(tile, title="" if place else title, first=title.startswith(("before", "after")))
                        for tile, title in zip(tiles, titles, strict=True)
                    ],
                    self.side * 2 // 3,
                )
            )
        about = f"{self._kind()} pivot scores, and the {before.kept.shape[1]} of {before.scores.shape[1]} patches kept."
        return Sheet("before-after", "Pivots before and after training", about, rows)

    def _scored(self, picture: Image.Image, title: str, seen: Seen, place: int) -> list[Tile]:
        """Return tiles of a picture, its scores and its kept patches."""
        kept, patches = seen.kept.shape[1], seen.scores.shape[1]
        scores = heat_map(picture, seen.scores[place].numpy(), self.grid)
        return [
            Tile(picture, title),
            Tile(scores, f"{self.model.pivots} scores", _contrast(seen.scores[place])),
            Tile(kept_patches(picture, seen.kept[place].numpy(), self.grid), f"kept, {kept} of {patches}"),
        ]

    def _about(self, layers: int) -> str:
        how = f"{self._kind()} pivot scores over {layers} layers, by the momentum encoder after {self.step} steps."
        return f"{how}{self._unused()}"

    def _kind(self) -> str:
        return self.model.pivots.capitalize()

    def _unused(self) -> str:
        return " This run has no local branch (model.local_weight 0)." if self.model.local_weight == 0 else ""

    def _evaluation_view(self, photo: Photograph) -> tuple[Image.Image, np.ndarray]:
        """Return the evaluation view of a photograph, as it is drawn and as the encoder sees it."""
        image = decode_image(photo.data)
        return picture_of(eval_view(image, self.side)), eval_view(image, self.image_size)

    def _random_views(self, photo: Photograph) -> tuple[list[Crop], list[Image.Image], list[np.ndarray]]:
        """Return the crops of two random views, and the views as they are drawn and as the encoder sees them."""
        seed = seed_of(self.seed, zlib.crc32(photo.data))
        opened = open_image(photo.data)
        size = upright_size(opened)
        finer = self.side / self.image_size
        low, high = self.views.blur_sigma
        # The blur is in pixels of the view; all else that is drawn does not depend on its size.
        large = replace(self.views, blur_sigma=(low * finer, high * finer))
        small_views = TwoViews(self.views, self.image_size)
        # A JPEG that was opened can be loaded at one size only.
        drawn = TwoViews(large, self.side)(size, partial(load_image, open_image(photo.data)), seed)
        seen = small_views(size, partial(load_image, opened), seed)
        return small_views.crops(size, seed), [picture_of(view) for view in drawn], list(seen)

    def _local_view(self, picture: Image.Image, kept: torch.Tensor) -> Image.Image:
        """Return a view's picture as its local view, made as training makes it."""
        if self.model.local_view == "pixels":
            return masked(picture, kept, self.grid, tuple(round(255 * mean) for mean in IMAGENET_MEAN))
        return _with_gaps(masked(picture, kept, self.grid, BLANK), self.grid)


def chosen_layers(layers: int) -> list[int]:
    """Return which of so many layers are shown: all, or six spread evenly from the first to the last."""
    return np.linspace(0, layers - 1, min(layers, MOST_LAYERS)).round().astype(int).tolist()


def masked(picture: Image.Image, kept: torch.Tensor, grid: tuple[int, int], colour: tuple[int, ...]) -> Image.Image:
    """Return a picture with `colour` in place of the patches that are not kept.

    `mask_pixels` sets them to 0 in normalised images, which is the mean colour; here 0 is `colour`.

    Args:
        picture: of whole pixels a patch.
        kept: (K,) int64 patch indices.
        grid: (rows, columns) of patches.
        colour: RGB.
    """
    origin = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0) - origin
    patch = (picture.height // grid[0], picture.width // grid[1])
    return picture_of((mask_pixels(image, kept.unsqueeze(0), patch) + origin)[0].to(torch.uint8).numpy())


def _with_gaps(picture: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """Part the patches of a picture, as they are tokens of a sequence and no image any more."""
    pen = ImageDraw.Draw(picture)
    for row in range(grid[0] + 1):
        y = row * picture.height // grid[0]
        pen.line((0, y, picture.width, y), BLANK, 3)
    for column in range(grid[1] + 1):
        x = column * picture.width // grid[1]
        pen.line((x, 0, x, picture.height), BLANK, 3)
    return picture


def _outlined(photo: Photograph, crop: Crop, side: int) -> Image.Image:
    """Return the whole photograph in a square, the crop bright and framed."""
    image = decode_image(photo.data)
    scale = side / max(image.size)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = round(scale * crop.left), round(scale * crop.top)
    right, bottom = round(scale * (crop.left + crop.width)), round(scale * (crop.top + crop.height))
    dimmed = Image.blend(whole, Image.new("RGB", whole.size, PAPER), 0.6)
    dimmed.paste(whole.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(dimmed).rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE, width=4)
    square = Image.new("RGB", (side, side), BLANK)
    square.paste(dimmed, ((side - whole.width) // 2, (side - whole.height) // 2))
    return square


def _contrast(scores: torch.Tensor) -> str:
    """Return how far the log scores (N,) of an image's patches lie apart, as the ratio of the largest to the least."""
    spread = float(scores.max() - scores.min())
    power = str(round(spread / math.log(10))).translate(SUPERSCRIPT)
    ratio = f"{math.exp(spread):.2f}" if spread < math.log(100) else f"10{power}"
    return f"max {ratio} \N{MULTIPLICATION SIGN} min"
