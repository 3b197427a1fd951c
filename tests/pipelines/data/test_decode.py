"""Decoding: every odd file gives the pixels a person would see, every bad one is refused with its reason."""

from __future__ import annotations

import io
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from pipelines.data.decode import ImageError, decode_image, load_image, open_image, upright_size
from tests.pipelines.bad_images import (
    GIANT_SIDE,
    ODD,
    ORDINARY,
    SIZE,
    giant_png,
    make_bad_folder,
    photograph,
    upper_red_lower_blue,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decode") / "odd"
    make_bad_folder(path)
    return path


def pixels(folder: Path, name: str) -> np.ndarray:
    """Decode a file as (height, width, 3)."""
    image = decode_image((folder / name).read_bytes())
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_all_usable_files_are_rgb(folder: Path) -> None:
    for name in (*ODD, *ORDINARY):
        height, width = (SIZE[0], SIZE[1]) if name == "rotated.jpg" else (SIZE[1], SIZE[0])
        assert pixels(folder, name).shape == (height, width, 3), name


def test_ordinary_jpeg_is_unchanged(folder: Path) -> None:
    expected = np.asarray(Image.open(folder / ORDINARY[0]))
    assert np.array_equal(pixels(folder, ORDINARY[0]), expected)


def test_grey_of_16_bits_is_scaled(folder: Path) -> None:
    grey = pixels(folder, "grey16.png")
    assert np.array_equal(grey[0, :, 0], np.linspace(0, 65535, SIZE[0]).astype(np.uint16) >> 8)
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_transparency_is_white(folder: Path) -> None:
    image = pixels(folder, "rgba.png")
    assert (image[:, : SIZE[0] // 2] == (0, 128, 0)).all()
    assert (image[:, SIZE[0] // 2 :] == 255).all()


def test_transparent_palette_is_white() -> None:
    image = Image.new("P", SIZE, 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(1, (0, 0, 10, 10))
    decoded = np.asarray(decode_image(encoded(image, "PNG", transparency=0)))
    assert (decoded[5, 5] == (200, 0, 0)).all() and (decoded[20, 20] == 255).all()


def test_grey_with_alpha_is_on_white() -> None:
    decoded = np.asarray(decode_image(encoded(Image.new("LA", SIZE, (0, 127)), "PNG")))
    assert abs(decoded.astype(int) - 128).max() <= 1


def test_animation_gives_its_first_frame(folder: Path) -> None:
    assert (pixels(folder, "animated.gif") == (255, 0, 0)).all()


def test_cmyk_gives_its_colour(folder: Path) -> None:
    assert abs(pixels(folder, "cmyk.jpg") - (255, 0, 0)).max() <= 6


def test_exif_rotation_is_applied(folder: Path) -> None:
    expected = np.asarray(upper_red_lower_blue()).astype(int)
    assert abs(pixels(folder, "rotated.jpg") - expected).mean() < 4


def test_damaged_exif_does_not_lose_a_good_image() -> None:
    data = encoded(photograph(0), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert decode_image(data).size == SIZE


def test_bad_files_are_refused_with_their_reason(tmp_path: Path) -> None:
    for name, reason in make_bad_folder(tmp_path / "odd").items():
        with pytest.raises(ImageError, match=reason):
            decode_image((tmp_path / "odd" / name).read_bytes())


def test_truncated_images_stay_refused() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "some import turned on PIL's tolerance, which hides damage"
    for kind in ("JPEG", "PNG", "GIF", "WEBP"):
        data = encoded(photograph(0), kind)
        with pytest.raises(ImageError):
            decode_image(data[: len(data) // 2])


def test_giant_is_refused_from_its_header() -> None:
    data = giant_png(GIANT_SIDE)
    start = time.process_time()
    with pytest.raises(ImageError, match="megapixels"):
        open_image(data)
    assert time.process_time() - start < 0.1, "decoding its 400 million pixels takes a second"


def test_100_megapixels_are_allowed_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(giant_png(10_000)).size == (10_000, 10_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_little_more_is_refused() -> None:
    with pytest.raises(ImageError, match="10001 x 10001 is more than 100 megapixels"):
        open_image(giant_png(10_001))


def test_upright_size_needs_no_pixels(folder: Path) -> None:
    for name in ODD:
        data = (folder / name).read_bytes()
        assert upright_size(open_image(data)) == decode_image(data).size, name


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_jpeg_is_decoded_at_a_fraction_of_its_size(reduction: int) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (13, 19, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((304, 208), Image.Resampling.BICUBIC)
    smooth.save(stream, "JPEG", quality=95, exif=turned())
    whole = decode_image(stream.getvalue())
    small = load_image(open_image(stream.getvalue()), reduction)
    assert whole.size == (208, 304)
    assert small.size == (208 // reduction, 304 // reduction)
    difference = np.asarray(small).astype(int) - np.asarray(whole.reduce(reduction)).astype(int)
    assert np.abs(difference).mean() < 3


def test_other_formats_keep_their_size() -> None:
    stream = io.BytesIO()
    photograph(0).save(stream, "PNG")
    assert load_image(open_image(stream.getvalue()), 4).size == photograph(0).size


def test_a_cut_off_jpeg_is_refused_at_any_size() -> None:
    stream = io.BytesIO()
    photograph(0).resize((300, 200)).save(stream, "JPEG")
    with pytest.raises(ImageError, match="cut off"):
        load_image(open_image(stream.getvalue()[:-2000]), 2)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif
