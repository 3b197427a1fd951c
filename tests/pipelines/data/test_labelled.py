"""Labelled images: every label belongs to its own image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import sources
from pipelines.data.labelled import load_labelled
from pipelines.data.samples import ImageStore

pytestmark = pytest.mark.slow


def test_labels_and_stored_images_are_in_one_order(
    ray_session: None, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FILES_PER_BLOCK", 5)  # several blocks, which may end in any order
    root = image_folder(classes=3, per_class=7)
    (root / "class-0" / "000.jpg").write_bytes(b"torn")
    images = load_labelled(str(root), "images")
    files = sorted(root.glob("*/*.jpg"))[1:]
    assert images.labels == [file.parent.name for file in files] and images.coarse is None
    store = ImageStore.from_dataset(images.dataset)
    assert list(store.read(np.arange(len(store)))) == [file.read_bytes() for file in files]
    assert images.targets(["class-2", "class-0"]).tolist() == [1] * 6 + [-1] * 7 + [0] * 7


def test_images_without_label_are_named(ray_session: None, image_folder: Callable[..., Path]) -> None:
    root = image_folder(classes=2, per_class=2)
    (root / "class-0" / "001.jpg").rename(root / "alone.jpg")
    with pytest.raises(ValueError, match=r"eval_images: 1 of the 4 images of .* have no label, the first is .*alone"):
        load_labelled(str(root), "eval_images")
