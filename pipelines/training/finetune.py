"""Train a classifier with labels on a pretrained encoder, test it, and leave it as files that timm reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from safetensors.torch import save

from lodisc.classifier import Classifier
from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from lodisc.probes.held_out import held_out_fifth
from lodisc.views import IMAGENET_MEAN, IMAGENET_STD, CropAndFlip
from pipelines.data.labelled import LabelledImages, load_labelled
from pipelines.data.samples import ImageStore, SampleOrder
from pipelines.data.scored import scored_views
from pipelines.data.sources import fingerprint
from pipelines.data.stream import Draw, sample_stream
from pipelines.evaluation.classification import Predictions
from pipelines.evaluation.features import extract
from pipelines.run.checkpoint import find_checkpoint, load_encoder, read_state
from pipelines.run.folder import FINISHED, RunFolder, claimed, named, open_run
from pipelines.run.nodes import require_shared
from pipelines.run.progress import terminal_style
from pipelines.tracking.runs import RunHandle, finish_run, log_files, open_tracking
from pipelines.tracking.store import store_warming, track
from pipelines.training.driver import drive
from pipelines.training.finetuning import FinetuneJob
from pipelines.training.options import FinetuneConfig
from pipelines.training.placement import Plans

WEIGHTS, ABOUT, SCORES = "classifier.safetensors", "classifier.json", "scores.json"
# After every epoch at most so many images are scored, drawn by the seed; the final table is of all.
SCORED_IMAGES = 3000


@dataclass(frozen=True)
class FinetuneResult:
    """What a finished run leaves.

    Attributes:
        run_dir: the run's folder, with classifier.safetensors, classifier.json and scores.json.
        run_id: the MLflow run.
        tracking_uri: the MLflow store.
        learning_rate: of the classifier, for a batch of 256.
        scores: on all test images, in percent: test/top1 and test/top5; and test/coarse, how often the class is at
            least of the right coarse class, where the images have coarse classes.
    """

    run_dir: str
    run_id: str
    tracking_uri: str
    learning_rate: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Task:
    """What a run learns.

    Attributes:
        training, test: the images.
        classes: the training images' classes, sorted; a class's place is its number.
        held_out: (images,) bool, the training images that choose a learning rate.
    """

    training: LabelledImages
    test: LabelledImages
    classes: list[str]
    held_out: np.ndarray

    @property
    def families(self) -> dict[str, str]:
        """The coarse class of each class; empty where there are none."""
        return dict(zip(self.training.labels, self.training.coarse or (), strict=bool(self.training.coarse)))


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Train a classifier, print how it does on the test images, and keep it under `config.storage`.

    Ray must be running. Interrupted or failed, the run continues with `resume`. The classifier is that of the last
    epoch, whatever its test scores on the way.

    Raises:
        ValueError: the name is in use, the images cannot be read or lack labels, or the cluster is too small.
        NonFiniteLossError: training diverged.
    """
    config = named(config, "finetune")
    if "://" not in config.checkpoint:
        config = replace(config, checkpoint=str(Path(config.checkpoint).absolute()))
    with claimed(config):
        return _finetune(config)


def _finetune(config: FinetuneConfig) -> FinetuneResult:
    # As in `pretrain`: refuse what can be refused, read the images, open the run, start the workers.
    folder = open_run(config)
    plans = Plans(config.compute, config.batch_size)
    require_shared(config.storage)
    _, about = load_encoder(config.checkpoint)
    encoder = EncoderConfig(**{**about["config"]["encoder"], "weights": "random"})
    with store_warming(config.tracking, config.storage):
        task = load_task(config)
    order = sample_order(config, task)
    prints = {
        "dataset.fingerprint": fingerprint(config.images),
        "dataset.held_out_fingerprint": fingerprint(config.eval_images),
        "lodisc.pretrained_run": about["run_id"],
    }
    run = open_tracking(config, folder, prints)
    job = FinetuneJob(
        config, order.steps_per_epoch, run, folder, terminal_style(), len(task.classes), float(task.held_out.mean())
    )
    if folder.finished_steps() < job.total_steps:
        datasets = {"views": _views(job, folder, task, order, encoder), **_scored(config, task, encoder)}
        drive(job, datasets, plans)
    else:  # It was interrupted between its last step and its scores.
        finish_run(run, "FINISHED")
    return _finish(config, folder, run, task, encoder)


def load_task(config: FinetuneConfig) -> Task:
    """Read the images that the config names. Ray must be running.

    Raises:
        ValueError: a source cannot be read or lacks labels, there is but one class, no test image is of a training
            image's class, or no class has an image to spare for choosing a learning rate.
    """
    training = load_labelled(config.images, "images")
    test = load_labelled(config.eval_images, "eval_images")
    classes = sorted(set(training.labels))
    if len(classes) < 2:
        raise ValueError(f"images: all images of {config.images} are of one class, {classes[0]}")
    unseen = sorted(set(test.labels) - set(classes))
    if len(unseen) == len(set(test.labels)):
        raise ValueError(
            f"eval_images: no image of {config.eval_images} is of a class that {config.images} has; it has "
            f"{', '.join(unseen[:3])}, and that {', '.join(classes[:3])}"
        )
    if unseen:
        count = sum(label in unseen for label in test.labels)
        print(f"{config.eval_images}: {count} images count as wrong, no training image is of {', '.join(unseen)}")
    held_out = np.zeros(len(training.labels), dtype=bool)
    if len(config.rates) > 1:
        held_out = held_out_fifth(torch.from_numpy(training.targets(classes)), config.seed).numpy()
        if not held_out.any():
            raise ValueError("images: choosing a learning rate needs a class of two images; set one in learning_rates")
    return Task(training, test, classes, held_out)


def sample_order(config: FinetuneConfig, task: Task) -> SampleOrder:
    """Return which training image each sample of the run shows.

    Raises:
        ValueError: there are fewer than a batch.
    """
    order = SampleOrder(config.seed, len(task.training.labels), config.batch_size)
    if order.steps_per_epoch == 0:
        raise ValueError(f"batch_size ({order.batch_size}) exceeds the {order.images} usable images of {config.images}")
    return order


def _views(
    job: FinetuneJob, folder: RunFolder, task: Task, order: SampleOrder, encoder: EncoderConfig
) -> Callable[[], ray.data.Dataset]:
    """Return what Ray Train calls each time it starts a group of workers: the stream from where the run stands then."""
    view = CropAndFlip(job.config.crop_scale, encoder.image_size)
    store, targets = ImageStore.from_dataset(task.training.dataset), task.training.targets(task.classes)
    draw = Draw(store, order, view, {"target": targets, "held_out": task.held_out})
    counts = job.config.compute.counts(job.config.batch_size)
    return lambda: sample_stream(draw, folder.finished_steps(), job.total_steps, counts)


def _scored(config: FinetuneConfig, task: Task, encoder: EncoderConfig) -> dict[str, ray.data.Dataset]:
    """Return the images that are scored after every epoch."""
    candidates = {"test": (task.test, np.arange(len(task.test.labels)))}
    if task.held_out.any():
        candidates["held_out"] = (task.training, np.flatnonzero(task.held_out))
    scored = {}
    for name, (images, indices) in candidates.items():
        random = np.random.default_rng([config.seed, len(indices)])
        chosen = np.sort(random.choice(indices, min(SCORED_IMAGES, len(indices)), replace=False))
        store = ImageStore.from_dataset(images.dataset)
        scored[name] = scored_views(store, images.targets(task.classes), chosen, encoder.image_size)
    return scored


def _finish(
    config: FinetuneConfig, folder: RunFolder, run: RunHandle, task: Task, encoder: EncoderConfig
) -> FinetuneResult:
    """Test the classifier of the last checkpoint on all test images, print the result, and keep both."""
    model, state = load_classifier(folder.path, len(task.classes), encoder)
    rate = config.rates[state["chosen"]]
    ranked = rank_classes(model, state["chosen"], task, encoder.image_size)
    predictions = Predictions(task.test.labels, ranked, task.test.coarse, task.families)
    print(f"{config.mode}, learning rate {rate:g}; {len(ranked)} test images of {config.eval_images}")
    print(predictions.text())
    if len(config.rates) > 1 and rate in (min(config.rates), max(config.rates)):
        end = "highest" if rate == max(config.rates) else "lowest"
        print(f"{rate:g} is the {end} of the learning rates that were tried: one beyond it may be better")
    folder.write(WEIGHTS, save(timm_weights(model, state["chosen"])))
    trained = {"mode": config.mode, "learning_rate": rate, "images": config.images, "from": config.checkpoint}
    files = {
        ABOUT: {**timm_description(encoder, len(task.classes)), "classes": task.classes, "coarse": task.families}
        | {"trained": trained},
        SCORES: predictions.as_dict(),
    }
    for name, content in files.items():
        folder.write_json(name, content)
    print(f"the classifier is {folder.path}/{WEIGHTS}; {ABOUT} beside it names its classes")
    log_files(run, {name: json.dumps(content, indent=2).encode() for name, content in files.items()})
    scores = {f"test/{name}": value for name, value in predictions.scores().items()}
    track(scores, state["step"], run.run_id, run.uri)
    result = FinetuneResult(folder.path, run.run_id, run.uri, rate, scores)
    folder.write_json(FINISHED, asdict(result))
    return result


def timm_weights(model: Classifier, head: int) -> dict[str, torch.Tensor]:
    """Return the encoder with one head as the state dict of a timm VisionTransformer."""
    chosen = model.heads[head].state_dict()
    weights = {**model.encoder.vit.state_dict(), **{f"head.{name}": value for name, value in chosen.items()}}
    return {name: value.contiguous() for name, value in weights.items()}


def timm_description(encoder: EncoderConfig, classes: int) -> dict[str, Any]:
    """Return how to make the timm model that `timm_weights` fits, and what it expects of an image."""
    shape = {"img_size": encoder.image_size, "patch_size": encoder.patch_size, "depth": encoder.depth}
    arguments = {name: value for name, value in shape.items() if value is not None}
    return {
        "timm": {"model_name": encoder.arch, "num_classes": classes, "global_pool": "token", **arguments},
        "image": {"size": encoder.image_size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    }


def load_classifier(run_dir: str, classes: int, encoder: EncoderConfig) -> tuple[Classifier, dict[str, Any]]:
    """Return the classifiers of a run's last checkpoint, on the CPU, and the checkpoint's state."""
    state = read_state(find_checkpoint(run_dir))
    heads = sum(name.startswith("heads.") and name.endswith(".weight") for name in state["model"])
    model = Classifier(Encoder(encoder), classes, heads)
    model.load_state_dict(state["model"])
    return model.eval(), state


@torch.inference_mode()
def rank_classes(model: Classifier, head: int, task: Task, image_size: int) -> list[list[str]]:
    """Return up to five classes of each test image, best first."""
    features = extract(model.encoder, task.test.dataset, image_size).features
    logits = torch.cat([model.classify(chunk)[head] for chunk in features.split(1024)])
    ranked = logits.topk(min(5, len(task.classes)), dim=1).indices
    return [[task.classes[number] for number in row] for row in ranked.tolist()]
