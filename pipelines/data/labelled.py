"""Labelled images, to learn from and to be tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ray.data

from pipelines.data.verify import usable_images


@dataclass(frozen=True)
class LabelledImages:
    """Usable images, each with a class.

    Attributes:
        dataset: rows {bytes, path, label, coarse}, materialised.
        labels: the fine class of each, in the dataset's order.
        coarse: the coarse class of each; None where any image has none.
    """

    dataset: ray.data.Dataset
    labels: list[str]
    coarse: list[str] | None

    def targets(self, classes: list[str]) -> np.ndarray:
        """Return the number (images,) int64 of each image's class in `classes`, -1 where it is none of them."""
        numbers = {name: number for number, name in enumerate(classes)}
        return np.array([numbers.get(label, -1) for label in self.labels], dtype=np.int64)


def load_labelled(source: str, field: str) -> LabelledImages:
    """Read a source's usable images, naming on the terminal what is set aside and why. Ray must be running.

    Args:
        source: `SRC` or `SRC@SPLIT`.
        field: the option that names it, for messages.

    Raises:
        ValueError: the source cannot be read, or an image has no label.
    """
    dataset = usable_images(source)
    dataset.context.execution_options.preserve_order = True
    rows: dict[str, list[str | None]] = {"path": [], "label": [], "coarse": []}
    for batch in dataset.select_columns(list(rows)).iter_batches(batch_size=None):
        for name, column in rows.items():
            column.extend(value if isinstance(value, str) else None for value in batch[name])
    labels = all_or_none(rows["label"])
    if labels is None:
        missing = [path for path, label in zip(rows["path"], rows["label"], strict=True) if label is None]
        raise ValueError(
            f"{field}: {len(missing)} of the {len(rows['path'])} images of {source} have no label, the first is "
            f"{missing[0]}; give every image one, as in CLASS/x.jpg or a list of lines `path, label`"
        )
    return LabelledImages(dataset, labels, all_or_none(rows["coarse"]))


def all_or_none(labels: list[str | None]) -> list[str] | None:
    """Return the labels where every image has one, else None."""
    present = [label for label in labels if label is not None]
    return present if len(present) == len(labels) else None
