"""What augmentation does to pixels: uint8 RGB arrays (H, W, 3) in, arrays of that kind out.

Each function does what torchvision's transform of that name does to a PIL image, to within rounding. OpenCV and
torch's antialiased resize of uint8 are several times faster than PIL (benchmarks/ingest.py).
"""

from __future__ import annotations

import cv2
import numpy as np

GREYS = np.arange(256, dtype=np.float32)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Return `image` at (size, size), bicubic and antialiased."""
    # Here, as processes that coordinate or check images import this module and need not wait for torch. PIL's own
    # resize needs no torch, but six times as long.
    import torch
    from torch.nn import functional as F

    # torch's fast antialiased resize of uint8 asks for this layout, batch dimension included.
    tensor = torch.from_numpy(np.array(image)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = F.interpolate(tensor, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def jitter(image: np.ndarray, strength: tuple[float, float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue in a random order.

    Args:
        image: uint8 (H, W, 3).
        strength: the first three change by factors uniform in [max(0, 1 - s), 1 + s]; the hue turns by a share of the
            circle uniform in [-s, s].
        rng: where the draws come from.
    """
    *factors, turn = strength
    changes = [*zip((brightness, contrast, saturation), factors, strict=True), (hue, turn)]
    for which in rng.permutation(4):
        change, s = changes[which]
        if s > 0:
            image = change(image, rng.uniform(-s, s) if change is hue else rng.uniform(max(0.0, 1 - s), 1 + s))
    return image


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: 0 is black, 1 the image."""
    return cv2.LUT(image, _bytes(GREYS * factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image's mean grey: 0 is that grey, 1 the image."""
    mean = round(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return cv2.LUT(image, _bytes(mean + (GREYS - mean) * factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image: 0 is grey, 1 the image."""
    return cv2.addWeighted(image, factor, grey(image), 1 - factor, 0)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by a share of the circle, -0.5 to 0.5."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # 8-bit hues wrap around as the circle does.
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grey(image: np.ndarray) -> np.ndarray:
    """Drop colour: the ITU-R 601 luma in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve with a Gaussian of standard deviation `sigma`, in pixels; the border is repeated outwards."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def solarise(image: np.ndarray) -> np.ndarray:
    """Invert values of 128 and more."""
    return cv2.LUT(image, _bytes(np.where(GREYS < 128, GREYS, 255 - GREYS)))


def _bytes(values: np.ndarray) -> np.ndarray:
    table: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return table
