"""The encoder: what it builds, what it refuses, its reduced pass, and weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder, require_known
from tests.lodisc.tiny import PATCHES, tiny_config, tiny_encoder, tiny_images


def test_it_is_timms_model() -> None:
    encoder = Encoder(tiny_config())
    assert (encoder.grid, encoder.patch_size, encoder.prefix_tokens) == ((4, 4), (8, 8), 1)
    assert len(encoder.vit.blocks) == 2
    plain = timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8, depth=2, global_pool="token")
    plain.load_state_dict(encoder.vit.state_dict())
    images = tiny_images(2)
    features = encoder(images)
    assert features.shape == (2, encoder.feature_dim)
    torch.testing.assert_close(features, plain(images))


def test_patches_are_the_tokens_after_the_prefix() -> None:
    encoder, images = tiny_encoder(arch="vit_small_patch14_reg4_dinov2"), tiny_images(2)
    features, patches = encoder.forward_with_patches(images)
    tokens = encoder.vit.forward_features(images)
    assert patches.shape == (2, PATCHES, encoder.feature_dim)
    assert torch.equal(patches, tokens[:, 5:]), "a class token and four registers come first"
    assert torch.equal(features, encoder(images)) and torch.equal(features, tokens[:, 0])


@pytest.mark.parametrize("arch", ["test_vit", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224"])
def test_all_patches_kept_is_the_ordinary_pass(arch: str) -> None:
    encoder, images = tiny_encoder(arch=arch), tiny_images(2)
    torch.testing.assert_close(encoder(images, torch.arange(PATCHES).expand(2, -1)), encoder(images))


def test_dropped_patches_are_never_seen() -> None:
    encoder, images = tiny_encoder(arch="vit_small_patch14_reg4_dinov2"), tiny_images(2)
    kept = torch.tensor([[0, 5, 6], [3, 9, 15]])
    expected = encoder(images, kept)
    changed = images.clone()
    changed[0, :, 8:, :8] += 1  # patches 4, 8 and 12: not among the first image's
    torch.testing.assert_close(encoder(changed, kept), expected)
    moved = encoder(images, torch.tensor([[0, 5, 7], [3, 9, 15]]))
    assert not torch.allclose(moved[0], expected[0])
    torch.testing.assert_close(moved[1], expected[1])


def test_only_kept_tokens_enter_the_blocks() -> None:
    encoder = tiny_encoder(arch="vit_small_patch14_reg4_dinov2")
    shapes: list[torch.Size] = []
    encoder.vit.blocks[0].register_forward_hook(lambda _module, inputs, _output: shapes.append(inputs[0].shape))
    encoder(tiny_images(2), torch.tensor([[0, 5, 6], [3, 9, 15]]))
    assert shapes == [(2, 1 + 4 + 3, encoder.feature_dim)]


def test_other_image_sizes_are_taken() -> None:
    encoder = tiny_encoder()
    features, attention = encoder.forward_with_attention(torch.randn(2, 3, 48, 40))
    assert features.shape == (2, encoder.feature_dim)
    assert attention.shape == (2, 2, 6 * 5)
    assert encoder.patches_of(torch.empty(2, 3, 48, 40)) == 6 * 5


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_embedding_is_frozen_on_demand(frozen: bool) -> None:
    encoder = Encoder(tiny_config(freeze_patch_embed=frozen))
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    every = {name for name, _ in encoder.named_parameters()}
    assert every - trained == ({"vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"} if frozen else set())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vit_enormous"}, r"encoder\.arch: .*vit_enormous"),
        ({"image_size": 36}, r"encoder\.image_size \(36\) must be a multiple"),
        ({"image_size": 0}, r"encoder\.image_size must be at least 1"),
        ({"depth": 0}, r"encoder\.depth must be at least 1"),
        ({"weights": "no/such/file.pt"}, r"encoder\.weights: 'no/such/file\.pt'"),
        ({"arch": "vit_base_patch16_plus_240", "weights": "timm"}, r"encoder\.weights: .*no pretrained weights"),
        ({"arch": "vit_tiny_patch16_224.nope"}, r"encoder\.arch: .*nope"),
    ],
)
def test_a_bad_field_is_named_before_anything_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_known(tiny_config(**changes))


def test_the_architectures_own_patch_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match=r"encoder\.image_size \(30\) must be a multiple"):
        Encoder(EncoderConfig(arch="test_vit", image_size=30))


@pytest.mark.parametrize(
    ("arch", "depth"),
    [
        ("resnet18", None),  # not a transformer
        ("test_vit3", None),  # no class token
        ("vit_small_patch16_18x2_224", 1),  # two attention layers side by side in a block
        ("vit_tiny_r_s16_p8_224", 1),  # convolutional stem
        ("swin_tiny_patch4_window7_224", None),  # windows
    ],
)
def test_an_architecture_that_cannot_serve_is_refused(arch: str, depth: int | None) -> None:
    with pytest.raises(ValueError, match=rf"encoder\.arch: {arch}"):
        Encoder(EncoderConfig(arch=arch, depth=depth))


@pytest.fixture
def source() -> Any:
    """A classifier of 10 classes, trained elsewhere at another image size."""
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=10, img_size=64, patch_size=8, depth=2)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_come_from_a_file(source: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(source.state_dict(), path) if path.suffix == ".safetensors" else torch.save(source.state_dict(), path)
    same_size = Encoder(tiny_config(image_size=64, weights=str(path)))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(same_size(images), source.forward_head(source.forward_features(images), pre_logits=True))

    resampled = Encoder(tiny_config(image_size=32, weights=str(path)))
    assert resampled.vit.pos_embed is not None
    assert resampled.vit.pos_embed.shape == (1, 1 + PATCHES, resampled.feature_dim)
    torch.testing.assert_close(resampled.vit.blocks.state_dict(), source.blocks.state_dict(), rtol=0, atol=0)


def test_weights_that_do_not_fit_are_named(source: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"

    def refused(content: object, message: str) -> None:
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf"(?s)encoder\.weights: .*weights\.pt.*{message}"):
            Encoder(tiny_config(image_size=64, weights=str(path)))

    state = source.state_dict()
    refused({name: value for name, value in state.items() if name != "norm.weight"}, r"norm\.weight")
    refused(state | {"norm.weight": torch.ones(7)}, r"norm\.weight.*\[7\].*\[64\]")
    refused(state | {"stray": torch.ones(7)}, "stray")
    refused(state | {"pos_embed": torch.ones(1, 3, 64)}, "")
    refused([1, 2], "flat dict of tensors")
    refused({"model": state}, "flat dict of tensors")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=r"encoder\.weights: .*cannot be read"):
        Encoder(tiny_config(weights=str(path)))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"head.weight": Path}, path)
    with pytest.raises(ValueError, match=r"encoder\.weights: .*cannot be read"):
        Encoder(tiny_config(weights=str(path)))
