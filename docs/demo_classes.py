"""Draw docs/images/demo-classes.png: a family a row, of each species its plate beside an image as the set has them.

python -m docs.demo_classes docs/images/demo-classes.png
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from pipelines.demo.birds import SPECIES
from pipelines.demo.scenes import draw_bird
from pipelines.pictures import Row, Sheet, Tile, draw

SIDE = 160
FAMILY = 4  # species in each


def sheet() -> Sheet:
    """Return the sheet of all classes."""
    rows = []
    for start in range(0, len(SPECIES), FAMILY):
        tiles = []
        for number, species in enumerate(SPECIES[start : start + FAMILY], start=start):
            random = np.random.default_rng([0, number])
            plate, image = draw_bird(species, random, SIDE, nuisances=False), draw_bird(species, random, SIDE)
            tiles += [Tile(Image.fromarray(plate), species.name.replace("_", " "), first=True)]
            tiles += [Tile(Image.fromarray(image))]
        rows.append(Row(tiles, SIDE))
    return Sheet("demo-classes", "The species of the demo images", "a family a row: plates, and images of them", rows)


if __name__ == "__main__":
    draw(sheet()).save(sys.argv[1])
