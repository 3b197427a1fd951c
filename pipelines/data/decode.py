"""Decode image files as the rest of the product wants them: upright, RGB, 8 bits a channel."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 100_000_000
# PIL warns of images larger than this, and refuses those of twice the size. Its own limit lies below ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason, in a few words."""


def decode_image(data: bytes) -> Image.Image:
    """Return an encoded image as an upright RGB image.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey keeps its upper 8 bits, an animation gives its
    first frame. CMYK and palettes are converted.

    Raises:
        ImageError: the file is empty, no image, cut off or damaged, or larger than 100 megapixels. The size is read
            from the header before any pixel is decoded.
    """
    return load_image(open_image(data))


def load_image(image: Image.Image, reduction: int = 1) -> Image.Image:
    """Decode the pixels of an opened image as `decode_image` does.

    Args:
        image: as `open_image` returns it.
        reduction: 1, 2, 4 or 8. A JPEG is decoded at that fraction of its size, sides rounded up; other formats keep
            their size.

    Raises:
        ImageError: cut off or damaged.
    """
    try:
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever they like at damaged data
        raise ImageError(f"cut off or damaged ({error})") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image once it is turned as its EXIF data say."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def open_image(data: bytes) -> Image.Image:
    """Read an image's header, with the checks that need no more.

    Raises:
        ImageError: see `decode_image`.
    """
    if not data:
        raise ImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} megapixels") from error
    except Exception as error:
        raise ImageError("not an image") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} is more than {MAX_PIXELS // 10**6} megapixels")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # PIL's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
