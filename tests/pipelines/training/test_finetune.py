"""Training with labels on a real Ray: a linear classifier, all of the encoder, in pieces and on two workers."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from lodisc.classifier import Classifier, head_losses
from lodisc.config import EncoderConfig, ModelConfig
from lodisc.encoder import Encoder
from lodisc.model import LoDisc
from lodisc.normalise import normalise
from lodisc.schedules import learning_rate_at
from lodisc.views import CropAndFlip, eval_view
from pipelines.data.decode import load_image
from pipelines.data.samples import SampleOrder, seed_of
from pipelines.run.causes import WorkersFailedError
from pipelines.run.checkpoint import FILE, find_checkpoint, last_checkpoint, load_encoder, read_state
from pipelines.run.config import ComputeConfig, DataConfig, PretrainConfig, to_dict
from pipelines.run.folder import FINISHED, step_of
from pipelines.training.finetune import ABOUT, SCORES, WEIGHTS, FinetuneResult, finetune, load_task
from pipelines.training.finetuning import ClassifierLearner, classifier_optimizer, image_weights
from pipelines.training.options import FULL_WARMUP, FinetuneConfig
from tests.pipelines.kill import kill_worker_after

TINY = EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)
CLASSES, STEPS, EPOCHS = 3, 6, 6  # steps of an epoch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the pretraining loop writes it."""
    config = PretrainConfig(data=DataConfig(images="."), encoder=TINY, model=ModelConfig(hidden_dim=16, output_dim=8))
    torch.manual_seed(5)
    model = LoDisc(config.encoder, config.model)
    folder = tmp_path_factory.mktemp("pretrained") / "step-00000007"
    folder.mkdir()
    about = {"step": 7, "config": to_dict(config), "run_id": "of-the-pretraining", "tracking_uri": "sqlite:///none"}
    torch.save({"model": model.state_dict(), **about}, folder / FILE)
    return folder


@pytest.fixture(scope="module")
def config(checkpoint: Path, image_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """One of the rates is too low to learn anything."""
    return FinetuneConfig(
        checkpoint=str(checkpoint),
        images=str(image_folder(classes=CLASSES, per_class=16)),
        eval_images=str(image_folder(classes=CLASSES, per_class=9)),
        epochs=EPOCHS,
        batch_size=8,
        learning_rates=(1e-6, 3.2, 1.6),
        crop_scale=(0.6, 1.0),
        precision="fp32",
        name="linear",
        storage=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def linear(ray_session: None, config: FinetuneConfig) -> FinetuneResult:
    return finetune(config)


@pytest.fixture(scope="module")
def full_config(config: FinetuneConfig, image_folder: Any) -> FinetuneConfig:
    """By two workers. Its test images have a class that the training images lack."""
    test = image_folder(classes=CLASSES + 1, per_class=9)
    full = replace(config, mode="full", learning_rates=(0.03,), epochs=2, eval_images=str(test), name="full")
    return replace(full, compute=ComputeConfig(workers=2))


@pytest.fixture(scope="module")
def full(ray_session: None, full_config: FinetuneConfig) -> FinetuneResult:
    return finetune(full_config)


def state_of(result: FinetuneResult) -> dict[str, Any]:
    return read_state(find_checkpoint(result.run_dir))


@pytest.mark.slow
def test_a_linear_classifier_learns_separable_classes(linear: FinetuneResult, config: FinetuneConfig) -> None:
    assert linear.scores == {"test/top1": 100.0, "test/top5": 100.0}
    assert linear.learning_rate in (3.2, 1.6)
    state, (pretrained, _) = state_of(linear), load_encoder(config.checkpoint)
    assert state["step"] == EPOCHS * STEPS
    for name, value in pretrained.state_dict().items():
        assert torch.equal(state["model"][f"encoder.{name}"], value), name
    results, scouts = ([state["model"][f"heads.{i}.weight"] for i in half] for half in ((1, 2), (4, 5)))
    assert not any(torch.equal(a, b) for a, b in zip(results, scouts, strict=True)), "a scout sees fewer images"


@pytest.mark.slow
def test_a_run_leaves_curves_and_scores(linear: FinetuneResult) -> None:
    client = MlflowClient(linear.tracking_uri)
    run = client.get_run(linear.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["mode"] == "linear" and run.data.params["crop_scale"] == "[0.6, 1.0]"
    assert run.data.tags["lodisc.pretrained_run"] == "of-the-pretraining"
    assert {"loss/1.6", "train/top1/3.2", "schedule/learning_rate", "eval/top5", "test/top1"} <= run.data.metrics.keys()
    losses = client.get_metric_history(linear.run_id, "loss/1.6")
    assert [point.step for point in losses] == list(range(1, EPOCHS * STEPS + 1))
    held_out = client.get_metric_history(linear.run_id, "held_out/top1/1.6")
    assert [point.step for point in held_out] == [epoch * STEPS for epoch in range(1, EPOCHS + 1)]
    assert {ABOUT, SCORES} <= {item.path for item in client.list_artifacts(linear.run_id)}
    scores = json.loads(Path(linear.run_dir, SCORES).read_text())
    assert scores["scores"] == {"top1": 100.0, "top5": 100.0} and scores["confusions"]["most_frequent"] == []


@pytest.mark.slow
def test_timm_reads_the_classifier(linear: FinetuneResult, config: FinetuneConfig) -> None:
    about = json.loads(Path(linear.run_dir, ABOUT).read_text())
    model = timm.create_model(**about["timm"]).eval()
    model.load_state_dict(load_file(Path(linear.run_dir, WEIGHTS)))
    for file in sorted(Path(config.eval_images).glob("*/*.jpg")):
        view = torch.from_numpy(eval_view(Image.open(file).convert("RGB"), about["image"]["size"]))
        assert about["classes"][model(normalise(view[None])).argmax()] == file.parent.name
    # The same file starts a pretraining.
    Encoder(replace(TINY, weights=str(Path(linear.run_dir, WEIGHTS))))


@pytest.mark.slow
def test_full_training_improves_the_encoder_and_an_unseen_class_is_wrong(
    full: FinetuneResult, full_config: FinetuneConfig
) -> None:
    known = 100 * CLASSES / (CLASSES + 1)
    assert 100 / CLASSES < full.scores["test/top1"] <= known
    state, (pretrained, _) = state_of(full), load_encoder(full_config.checkpoint)
    for name in ("vit.patch_embed.proj.weight", "vit.blocks.0.attn.qkv.weight", "vit.pos_embed"):
        assert not torch.equal(state["model"][f"encoder.{name}"], pretrained.state_dict()[name])
    scores = json.loads(Path(full.run_dir, SCORES).read_text())
    assert sum(pair["count"] for pair in scores["confusions"]["most_frequent"] if pair["truth"] == "class-3") == 9
    losses = MlflowClient(full.tracking_uri).get_metric_history(full.run_id, "loss")
    assert losses[-1].value < 0.8 * losses[0].value


@pytest.mark.slow
def test_two_workers_train_as_a_plain_loop_does(full: FinetuneResult, full_config: FinetuneConfig) -> None:
    """Losses of the first epoch agree to 1e-4: only the order of sums differs, which AdamW amplifies."""
    history = MlflowClient(full.tracking_uri).get_metric_history(full.run_id, "loss")
    assert [point.value for point in history][:STEPS] == pytest.approx(plain_losses(full_config, STEPS), abs=1e-4)


def plain_losses(config: FinetuneConfig, steps: int) -> list[float]:
    """Return the losses of the first steps of training all of an encoder, one process taking whole batches."""
    files = sorted(Path(config.images).glob("*/*.jpg"))
    targets = torch.tensor([int(file.parent.name.removeprefix("class-")) for file in files])
    order, view = SampleOrder(config.seed, len(files), config.batch_size), CropAndFlip(config.crop_scale, 32)
    total = config.epochs * order.steps_per_epoch
    encoder, _ = load_encoder(config.checkpoint)
    torch.manual_seed(config.seed)
    model = Classifier(encoder, CLASSES, frozen=False)
    optimizer = classifier_optimizer(config, model)
    losses = []
    for step in range(steps):
        samples = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
        numbers = order.image_of(samples)
        photos = [Image.open(files[number]) for number in numbers]
        seeds = [seed_of(config.seed, int(sample)) for sample in samples]
        views = [view(p.size, partial(load_image, p), seed) for p, seed in zip(photos, seeds, strict=True)]
        logits = model(normalise(torch.from_numpy(np.stack(views))))
        loss = torch.nn.functional.cross_entropy(logits[0], targets[numbers])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total, round(FULL_WARMUP * total), group["peak"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_resume_equals_uninterrupted(linear: FinetuneResult, config: FinetuneConfig) -> None:
    """The worker is killed after the first epoch; the resumed run ends with bit-identical parameters.

    Workers start twice, and its end is resumed once more: half a minute.
    """
    broken = replace(config, name="broken", compute=ComputeConfig(restarts=0))
    killer = threading.Thread(target=kill_worker_after, args=(Path(config.storage) / "broken", STEPS))
    killer.start()
    with pytest.raises(WorkersFailedError):
        finetune(broken)
    killer.join()
    last = last_checkpoint(f"{config.storage}/broken")
    assert last is not None and STEPS <= step_of(last.path) < EPOCHS * STEPS
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        finetune(replace(broken, resume=True, seed=1))

    resumed = finetune(replace(broken, resume=True))
    assert resumed.scores == linear.scores and resumed.learning_rate == linear.learning_rate
    one, other = state_of(linear)["model"], state_of(resumed)["model"]
    assert all(torch.equal(one[name], other[name]) for name in one)

    # As if it had been interrupted after its last step.
    Path(resumed.run_dir, FINISHED).unlink()
    Path(resumed.run_dir, WEIGHTS).unlink()
    again = finetune(replace(broken, resume=True))
    assert again == resumed and Path(again.run_dir, WEIGHTS).is_file()
    assert MlflowClient(again.tracking_uri).get_run(again.run_id).info.status == "FINISHED"
    with pytest.raises(ValueError, match="finished"):
        finetune(replace(broken, resume=True))


@pytest.mark.slow
def test_bad_requests_are_refused_before_any_training(
    linear: FinetuneResult, config: FinetuneConfig, image_folder: Any
) -> None:
    new = replace(config, name="new")
    with pytest.raises(ValueError, match="name: a run 'linear' exists"):
        finetune(config)
    with pytest.raises(ValueError, match="holds a classifier"):
        finetune(replace(new, checkpoint=linear.run_dir))
    with pytest.raises(ValueError, match=r"batch_size \(64\) exceeds the 48 usable images"):
        finetune(replace(new, batch_size=64))
    one = image_folder(classes=1, per_class=4)
    with pytest.raises(ValueError, match="are of one class, class-0"):
        finetune(replace(new, images=str(one)))
    (one / "class-0").rename(one / "other")
    with pytest.raises(
        ValueError, match=r"eval_images: no image of .* is of a class that .* it has other, and that cl"
    ):
        finetune(replace(new, eval_images=str(one)))
    single = image_folder(classes=3, per_class=1)
    with pytest.raises(ValueError, match="choosing a learning rate needs a class of two images"):
        load_task(replace(new, images=str(single)))
    assert not load_task(replace(new, images=str(single), learning_rates=(1.0,))).held_out.any()
    assert not (Path(config.storage) / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "half"}, "mode must be one of linear, full"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"compute": ComputeConfig(workers=3)}, r"batch_size \(8\) must be a multiple of compute.workers 3"),
        ({"learning_rates": ()}, "learning_rates must be different and > 0"),
        ({"learning_rates": (0.1, 0.1)}, "learning_rates must be different and > 0"),
        ({"mode": "full"}, "learning_rates: full trains one encoder, at one rate"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale must satisfy"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"name": "a/b"}, "name must be a plain folder name"),
        ({"name": None, "resume": True}, "resume needs the name"),
        ({"images": "nowhere"}, "nowhere: there is no such file or folder"),
        ({"checkpoint": "nowhere"}, "nowhere: neither a checkpoint folder"),
    ],
)
def test_config_refuses(config: FinetuneConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
    with pytest.raises(ValueError, match="eval_images must hold other images than images"):
        replace(config, eval_images=config.images)


def test_a_learning_rate_is_chosen_by_the_held_out_images_never_by_the_test_images() -> None:
    """Of two rates, the scout of the first is right on held-out images, the result of the second on test images."""
    model = Classifier(Encoder(TINY), classes=2, heads=4)
    right = torch.zeros(2, model.encoder.feature_dim)
    right[0, 0], right[1, 0] = 1.0, -1.0
    with torch.no_grad():
        for head, sign in zip(model.heads, (-1, 1, 1, -1), strict=True):
            head.weight.copy_(sign * right)
    features = torch.zeros(6, model.encoder.feature_dim)
    features[:3, 0], features[3:, 0] = 1.0, -1.0
    images = [(features, torch.tensor([0, 0, 0, 1, 1, 1]))]
    learner: Any = object.__new__(ClassifierLearner)
    learner.job = SimpleNamespace(config=SimpleNamespace(rates=(0.1, 0.2)), chooses=True)
    learner.model, learner.device, learner.chosen = model, torch.device("cpu"), 1
    learner.embedded = {"held_out": images, "test": images}
    assert learner.look(1).scores == {
        "held_out/top1/0.1": 100.0,
        "held_out/top1/0.2": 0.0,
        "eval/top1": 0.0,
        "eval/top5": 100.0,
    }
    assert learner.chosen == 0


def test_scouts_never_learn_from_held_out_images_and_weigh_the_others_up() -> None:
    held_out = torch.tensor([True, False, False, False, True])
    weights = image_weights(held_out, rates=2, share=0.4)
    assert torch.equal(weights[:2], torch.ones(2, 5))
    torch.testing.assert_close(weights[2:], torch.tensor([[0, 1, 1, 1, 0]] * 2) / 0.6)
    assert torch.equal(image_weights(held_out, rates=1, share=0.0), torch.ones(1, 5))


def test_heads_beside_each_other_learn_as_each_would_alone(config: FinetuneConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(4, 8, 192, generator=generator), torch.arange(8) % 3

    def trained(rates: tuple[float, ...]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Classifier(Encoder(TINY), 3, len(rates))
        optimizer = classifier_optimizer(replace(config, learning_rates=rates), model)
        for batch in features:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"]
            optimizer.zero_grad()
            head_losses(model.classify(batch), targets, torch.ones(len(rates), 8)).sum().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.heads.parameters()]

    together = trained((0.5, 4.0))
    for alone, beside in zip(trained((0.5,)) + trained((4.0,)), together, strict=True):
        torch.testing.assert_close(alone, beside)
    assert not torch.allclose(together[0], together[2])
