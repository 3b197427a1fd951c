"""A folder as users have them: ordinary photographs, odd ones that can be used, and files that cannot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
QUARTER_TURN = 6  # the camera was turned: show the image turned clockwise
SIZE = (48, 32)
GIANT_SIDE = 20_000

ORDINARY = tuple(f"plain-{number}.jpg" for number in range(6))
ODD = ("cmyk.jpg", "grey16.png", "rgba.png", "animated.gif", "rotated.jpg")


def make_bad_folder(path: Path) -> dict[str, str]:
    """Create the folder `path` with ORDINARY and ODD images, and four files that must be set aside.

    Returns:
        A part of the reason that must be given, by name of file to be set aside.
    """
    path.mkdir(parents=True)
    for number, name in enumerate(ORDINARY):
        photograph(number).save(path / name, quality=90)
    _write_odd(path)
    (path / "empty.jpg").touch()
    (path / "text.jpg").write_text("This is no photograph.\n")
    whole = (path / ORDINARY[0]).read_bytes()
    (path / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (path / "giant.png").write_bytes(giant_png(GIANT_SIDE))
    return {
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "truncated.jpg": "cut off or damaged",
        "giant.png": "more than 100 megapixels",
    }


def photograph(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return an RGB image of noise, width x height `size`."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def upper_red_lower_blue() -> Image.Image:
    """Return the image that `rotated.jpg` shows when upright: 32 wide and 48 high."""
    image = Image.new("RGB", (SIZE[1], SIZE[0]), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, SIZE[1], SIZE[0] // 2))
    return image


def giant_png(side: int) -> bytes:
    """Return a valid black 1-bit PNG of `side` x `side` pixels, packed row by row."""
    row, packer = b"\0" + bytes((side + 7) // 8), zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_odd(path: Path) -> None:
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(path / "cmyk.jpg", quality=95)  # red
    ramp = np.linspace(0, 65535, SIZE[0]).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (SIZE[1], 1))).save(path / "grey16.png")
    clear = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    clear.paste((0, 128, 0, 255), (0, 0, SIZE[0] // 2, SIZE[1]))  # left half green, right half transparent black
    clear.save(path / "rgba.png")
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path / "animated.gif", save_all=True, append_images=frames[1:], duration=50)
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    as_the_sensor_saw_it = upper_red_lower_blue().transpose(Image.Transpose.ROTATE_90)
    as_the_sensor_saw_it.save(path / "rotated.jpg", exif=exif, quality=95, subsampling=0)
