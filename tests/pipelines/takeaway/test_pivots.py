"""What the sheets of pivots show, held against the attention that it is said to be."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lodisc.config import ModelConfig, ViewConfig
from lodisc.encoder import Encoder
from lodisc.normalise import normalise
from lodisc.pivots import keep_patches
from lodisc.views import IMAGENET_MEAN, eval_view
from pipelines.data.decode import decode_image
from pipelines.data.examples import Photograph
from pipelines.pictures import heat_map, picture_of
from pipelines.takeaway.pivots import BLANK, PivotSheets, chosen_layers, masked, see
from tests.lodisc.tiny import PATCHES, attention_layers, tiny_encoder

GRID = (4, 4)


@pytest.fixture(scope="module")
def photo() -> Photograph:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(stream, format="JPEG", quality=95)
    return Photograph("photos/finch/a.jpg", "finch", stream.getvalue())


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder().eval()


def sheets(encoder: Encoder, seed: int = 0, **model: Any) -> PivotSheets:
    return PivotSheets(encoder, ModelConfig(**model), ViewConfig(), step=9, seed=seed)


def same(first: Any, second: Any) -> bool:
    """Whether two pictures or arrays are equal."""
    return np.array_equal(np.asarray(first), np.asarray(second))


def small_view(photo: Photograph) -> np.ndarray:
    return eval_view(decode_image(photo.data), 32)


@torch.no_grad()
def test_layers_are_the_attention_of_each_block_and_scores_their_product(encoder: Encoder, photo: Photograph) -> None:
    view = small_view(photo)
    seen = see(encoder, [view], ModelConfig(mask_ratio=0.7))
    images = normalise(torch.from_numpy(view).unsqueeze(0))
    tokens = encoder.vit._pos_embed(encoder.vit.patch_embed(images))
    product = torch.ones(1, PATCHES)
    for layer, (block, attention) in enumerate(zip(encoder.vit.blocks, attention_layers(encoder.vit), strict=True)):
        count = tokens.shape[1]
        q, k, _ = attention.qkv(block.norm1(tokens)).view(1, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        matrix = (q @ k.transpose(-2, -1) * attention.scale).softmax(dim=-1).mean(dim=1)
        patches = matrix[:, 0, encoder.prefix_tokens :]
        torch.testing.assert_close(seen.layers[layer].exp(), patches, atol=1e-6, rtol=1e-4)
        product, tokens = product * patches, block(tokens)
    torch.testing.assert_close(seen.scores.exp(), product, atol=1e-8, rtol=1e-3)
    # Patches of the same look score the same up to rounding: any of them may be the fourth.
    assert seen.kept.shape == (1, 4)
    assert product[0, seen.kept[0]].min() >= product[0].topk(4).values.min() * (1 - 1e-3)


def test_random_pivots_are_those_of_the_seed(encoder: Encoder, photo: Photograph) -> None:
    model = ModelConfig(pivots="random")
    first, again, other = (see(encoder, [small_view(photo)], model, seed).scores for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_heat_maps_are_of_their_layers_and_kept_patches_in_colour_alone(encoder: Encoder, photo: Photograph) -> None:
    drawn = sheets(encoder, mask_ratio=0.7)
    sheet = drawn.pivots(3, photo)
    (picture, scores, kept), layers = (row.tiles for row in sheet.rows)
    seen = see(encoder, [small_view(photo)], drawn.model)
    assert sheet.name == "pivots-03-a" and sheet.title == "finch" and "after 9 steps" in sheet.about
    assert picture.picture.size == (384, 384), "drawn finer than the 32 pixels that the encoder sees"
    assert same(picture.picture, picture_of(eval_view(decode_image(photo.data), 384)))
    assert same(scores.picture, heat_map(picture.picture, seen.scores[0].numpy(), GRID))
    assert [tile.title for tile in layers] == ["layer 1", "layer 2"]
    for layer, tile in enumerate(layers):
        assert same(tile.picture, heat_map(picture.picture, seen.layers[layer, 0].numpy(), GRID))
    assert not same(layers[0].picture, layers[1].picture)
    chosen = keep_patches(seen.scores, 0.7)[0].tolist()
    assert visible(kept.picture, picture.picture) == chosen and kept.title == "kept, 4 of 16"


def visible(shown: Image.Image, whole: Image.Image) -> list[int]:
    """Return the patches of a picture that are as in the whole one."""
    side = whole.width // GRID[0]
    patches = [(row * side, column * side) for row in range(GRID[0]) for column in range(GRID[1])]
    equal = np.abs(np.asarray(shown, dtype=int) - np.asarray(whole, dtype=int)).max(axis=-1) <= 1
    return [place for place, (y, x) in enumerate(patches) if equal[y + 3 : y + side - 3, x + 3 : x + side - 3].all()]


@pytest.mark.parametrize("form", ["tokens", "pixels"])
def test_local_views_show_the_kept_patches_of_their_own_view(encoder: Encoder, photo: Photograph, form: str) -> None:
    drawn = sheets(encoder, local_view=form, mask_ratio=0.7)
    sheet = drawn.two_views(1, photo)
    _, views, small = drawn._random_views(photo)
    seen = see(encoder, small, drawn.model)
    assert len(sheet.rows) == 2 and not same(small[0], small[1])
    for which, (row, view) in enumerate(zip(sheet.rows, views, strict=True)):
        crop, shown, scores, local = row.tiles
        assert same(shown.picture, view) and crop.picture.size == shown.picture.size
        assert same(scores.picture, heat_map(view, seen.scores[which].numpy(), GRID))
        assert visible(local.picture, view) == seen.kept[which].tolist() and form in local.title
        dropped = next(place for place in range(PATCHES) if place not in seen.kept[which])
        y, x = (96 * (dropped // 4) + 48, 96 * (dropped % 4) + 48)
        expected = BLANK if form == "tokens" else tuple(round(255 * mean) for mean in IMAGENET_MEAN)
        assert local.picture.getpixel((x, y)) == expected


def test_views_are_drawn_as_the_encoder_sees_them(encoder: Encoder, photo: Photograph) -> None:
    """The same crops, colours and flips at another size: shrunk again, they differ by rounding and resampling."""
    for seed in range(6):
        _, large, small = sheets(encoder, seed)._random_views(photo)
        for picture, view in zip(large, small, strict=True):
            again = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), dtype=float)
            right, mirrored = (np.abs(other - view.transpose(1, 2, 0)).mean() for other in (again, again[:, ::-1]))
            assert right < 8 and 2 * right < mirrored


def test_before_and_after_are_of_the_two_encoders(encoder: Encoder, photo: Photograph) -> None:
    torch.manual_seed(1)
    untrained = tiny_encoder(depth=3).eval()
    drawn = sheets(encoder)
    sheet = drawn.before_after(untrained, [photo, photo])
    assert len(sheet.rows) == 2
    titles = ["photograph", "before training", "kept", "after 9 steps", "kept"]
    assert [[tile.title for tile in row.tiles] for row in sheet.rows] == [titles, [""] * 5]
    for row in sheet.rows:
        for tile, who in ((row.tiles[1], untrained), (row.tiles[3], encoder)):
            seen = see(who, [small_view(photo)], drawn.model)
            assert same(tile.picture, heat_map(row.tiles[0].picture, seen.scores[0].numpy(), GRID))


def test_patches_that_are_not_kept_have_one_colour() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    shown = np.asarray(masked(picture, torch.tensor([0, 3]), (2, 2), (9, 8, 7)))
    assert (shown[:4, :4] == np.asarray(picture)[:4, :4]).all() and (shown[4:, 4:] == np.asarray(picture)[4:, 4:]).all()
    assert (shown[:4, 4:] == (9, 8, 7)).all() and (shown[4:, :4] == (9, 8, 7)).all()


def test_many_layers_are_thinned_from_the_first_to_the_last() -> None:
    assert chosen_layers(2) == [0, 1] and chosen_layers(6) == [0, 1, 2, 3, 4, 5]
    assert chosen_layers(12) == [0, 2, 4, 7, 9, 11]
