"""The images of a run, in Ray's object store, where any number of runs can read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import ray.data

from lodisc.views import TwoViews
from pipelines.data.samples import ImageStore, SampleOrder
from pipelines.data.scored import eval_images
from pipelines.data.sources import fingerprint
from pipelines.data.stream import Draw, sample_stream
from pipelines.data.verify import usable_images
from pipelines.run.config import PretrainConfig
from pipelines.run.folder import RunFolder


@dataclass(frozen=True)
class RunImages:
    """What a run reads.

    Attributes:
        training: usable training images, rows {bytes, path, label, coarse}.
        held_out: usable images to score on; None where the config names none.
        fingerprints: MLflow tags that tell which images these are.
        decoded: for scoring, the training images and, if there are any, those held out, as `eval_images` gives them.
        decoded_for: what `decoded` depends on, see `_decoding`.
        views: all pairs of views of a run; None where they are drawn as they are needed.
        views_for: what `views` depends on, see `_drawing`.
    """

    training: ray.data.Dataset
    held_out: ray.data.Dataset | None
    fingerprints: dict[str, str]
    decoded: dict[str, ray.data.Dataset]
    decoded_for: Hashable
    views: ray.data.Dataset | None = None
    views_for: Hashable = None


def load_images(config: PretrainConfig) -> RunImages:
    """Read the images that the config names, naming on the terminal what is set aside and why. Ray must be running.

    Raises:
        ValueError: a source cannot be read, or the training images are fewer than a batch.
    """
    training = usable_images(config.data.images)
    sample_order(training, config)
    fingerprints = {"dataset.fingerprint": fingerprint(config.data.images)}
    held_out = None
    if config.data.eval_images:
        held_out = usable_images(config.data.eval_images)
        fingerprints["dataset.held_out_fingerprint"] = fingerprint(config.data.eval_images)
    decoded = _decode(config, training, held_out)
    return RunImages(training, held_out, fingerprints, decoded, _decoding(config))


def images_for(images: RunImages, config: PretrainConfig) -> RunImages:
    """Return images that were loaded for another config as this one needs them, doing again only what differs."""
    if images.decoded_for != _decoding(config):
        decoded = _decode(config, images.training, images.held_out)
        images = replace(images, decoded=decoded, decoded_for=_decoding(config))
    return images if images.views_for == _drawing(config) else replace(images, views=None, views_for=None)


def with_views(images: RunImages, config: PretrainConfig) -> RunImages:
    """Return the images with every pair of views of the run drawn and held in the object store."""
    views = _stream(images, config)(0)
    views.context.execution_options.preserve_order = True
    return replace(images, views=views.materialize(), views_for=_drawing(config))


def same_views(one: PretrainConfig, other: PretrainConfig) -> bool:
    """Whether two runs on the same images show the same views."""
    return _drawing(one) == _drawing(other)


def views_bytes(images: RunImages, config: PretrainConfig) -> int:
    """Return what all pairs of views of the run take of the object store."""
    draw = _draw(images, config)
    return config.optim.epochs * draw.order.steps_per_epoch * config.optim.batch_size * draw.sample_bytes


def sample_order(training: ray.data.Dataset, config: PretrainConfig) -> SampleOrder:
    """Return which training image each sample of the run shows.

    Raises:
        ValueError: there are fewer than a batch.
    """
    order = SampleOrder(config.seed, training.count(), config.optim.batch_size)
    if order.steps_per_epoch == 0:
        raise ValueError(
            f"optim.batch_size ({order.batch_size}) exceeds the {order.images} usable images of {config.data.images}"
        )
    return order


def views_from_last_checkpoint(
    config: PretrainConfig, folder: RunFolder, images: RunImages
) -> Callable[[], ray.data.Dataset]:
    """Return what Ray Train calls each time it starts a group of workers: the stream from where the run stands then."""
    stream, drawn = _stream(images, config), images.views

    def views() -> ray.data.Dataset:
        done = folder.finished_steps()
        return drawn if drawn is not None and done == 0 else stream(done)

    return views


def _stream(images: RunImages, config: PretrainConfig) -> Callable[[int], ray.data.Dataset]:
    draw = _draw(images, config)
    total = config.optim.epochs * draw.order.steps_per_epoch
    return lambda start: sample_stream(draw, start, total, config.compute.counts(config.optim.batch_size))


def _draw(images: RunImages, config: PretrainConfig) -> Draw:
    two_views = TwoViews(config.views, config.encoder.image_size)
    return Draw(ImageStore.from_dataset(images.training), sample_order(images.training, config), two_views)


def _decode(
    config: PretrainConfig, training: ray.data.Dataset, held_out: ray.data.Dataset | None
) -> dict[str, ray.data.Dataset]:
    sources = {"gallery": training} | ({} if held_out is None else {"held_out": held_out})
    size, limit = config.encoder.image_size, config.evaluation.max_images
    return {name: eval_images(images, config.views, size, limit, config.seed) for name, images in sources.items()}


def _decoding(config: PretrainConfig) -> Hashable:
    return config.views, config.encoder.image_size, config.evaluation.max_images, config.seed


def _drawing(config: PretrainConfig) -> Hashable:
    optim = config.optim
    counts = tuple(config.compute.counts(optim.batch_size))
    return config.views, config.encoder.image_size, config.seed, optim.batch_size, optim.epochs, counts
