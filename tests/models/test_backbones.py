"""Encoders of timm and torchvision: shapes, weights, freezing and stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.nets import SMALL, build
from torch import nn
from torchvision.models import get_model

from vidcls.errors import UserError
from vidcls.models.backbones import Backbone, build_net
from vidcls.models.pretrained import frozen_stages, split_stages


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file for SMALL."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(build_net(SMALL, 3).state_dict(), path)
    return str(path)


# ---- features


@pytest.mark.parametrize(
    ("name", "resolution", "num_features"),
    [
        ("torchvision/resnet18", 32, 512),
        ("torchvision/mobilenet_v2", 32, 1280),
        ("torchvision/mobilenet_v3_small", 32, 1024),
        ("torchvision/efficientnet_b0", 32, 1280),
        ("torchvision/convnext_tiny", 32, 768),
        ("torchvision/swin_t", 32, 768),
        ("torchvision/squeezenet1_1", 32, 512),
        ("torchvision/densenet121", 32, 1024),
        ("torchvision/googlenet", 32, 1024),
        ("torchvision/alexnet", 64, 4096),
        ("timm/resnet18.a1_in1k", 32, 512),
        ("timm/tf_efficientnet_lite0", 32, 1280),
        ("timm/mobilenetv3_small_050", 32, 1024),
        ("timm/convnext_atto", 32, 320),
        ("timm/test_vit", 160, 64),
    ],
)
def test_shape_and_gradients(name: str, resolution: int, num_features: int) -> None:
    encoder = build(name, resolution=resolution).train()
    frames = torch.rand(2, 3, 3, resolution, resolution)
    features = encoder(frames)
    assert encoder.num_features == num_features
    assert features.shape == (2, 3, num_features)
    (features * torch.randn(num_features)).sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    first = next(parameter for parameter in encoder.parameters() if parameter.ndim == 4)
    assert first.grad is not None and bool(first.grad.any())


def test_a_vision_transformer_of_torchvision_at_its_own_size() -> None:
    encoder = build("torchvision/vit_b_16", resolution=224).eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, 1, 3, 224, 224)).shape == (1, 1, 768)


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2", "convnext_tiny", "swin_t", "densenet121"])
def test_features_are_what_the_last_layer_took(model: str) -> None:
    torch.manual_seed(0)
    theirs = get_model(model).eval()
    encoder = build(f"torchvision/{model}").eval()
    encoder.net.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in encoder.net.state_dict()})
    frames = torch.rand(2, 1, 3, 32, 32)
    (last,) = (part for part in theirs.modules() if isinstance(part, nn.Linear) and part.out_features == 1000)
    with torch.no_grad():
        logits = last(encoder(frames))[:, 0]
        torch.testing.assert_close(logits, theirs(frames[:, 0]), atol=1e-4, rtol=1e-4)


def test_each_frame_on_its_own() -> None:
    encoder = build().eval()
    frames = torch.rand(2, 4, 3, 32, 32)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        torch.testing.assert_close(encoder(frames)[:, order], encoder(frames[:, order]))


def test_the_classifiers_own_dropout_goes_with_it() -> None:
    assert not any(isinstance(part, nn.Dropout) for part in build("torchvision/mobilenet_v2").modules())


@pytest.mark.parametrize("name", [SMALL, "torchvision/resnet18"])
def test_six_channels_of_the_same_twice_are_three(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "weights.pth")
    torch.save(build_net(name, 3).state_dict(), path)
    three, six = build(name, path).eval(), build(name, path, in_channels=6).eval()
    three.load_weights()
    six.load_weights()
    frames = torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(six(torch.cat([frames, frames], dim=2)), three(frames), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("torchvision/resnet19", "torchvision/resnet18"),
        ("timm/tf_efficientnet_lit0", "timm/tf_efficientnet_lite0"),
        ("timm/resnet18.a1_in2k", r"timm/resnet18.a1_in1k"),
        ("resnet18", "resnet18"),
        ("torchvision/r3d_18", "torchvision/"),
    ],
)
def test_unknown_names(name: str, nearest: str) -> None:
    message = rf"The nearest are .*{nearest}.*\[model.encoder.name\]$"
    with pytest.raises(UserError, match=message):
        build(name)


@pytest.mark.parametrize(
    ("name", "resolution", "native"),
    [
        ("timm/vit_tiny_patch16_224", 64, 224),
        ("torchvision/vit_b_16", 64, 224),
        ("torchvision/alexnet", 32, 224),
        ("torchvision/inception_v3", 32, 299),
    ],
)
def test_frames_that_a_network_does_not_take(name: str, resolution: int, native: int) -> None:
    with pytest.raises(UserError, match=rf"data.resolution={native}, .*\[data.resolution\]$"):
        build(name, resolution=resolution)


# ---- weights


def test_weights_are_loaded_when_asked_not_when_built(weights: str) -> None:
    encoder, scratch = build(weights=weights), build()
    state = torch.load(weights)
    assert torch.equal(encoder.net.conv_stem.weight, scratch.net.conv_stem.weight)
    encoder.load_weights()
    scratch.load_weights()
    assert torch.equal(encoder.net.conv_stem.weight, state["conv_stem.weight"])
    assert not torch.equal(scratch.net.conv_stem.weight, state["conv_stem.weight"])


def test_a_checkpoint_needs_no_weights_file() -> None:
    encoder = build(weights="gone.pth", trainable_from="none")  # built, as for a checkpoint
    encoder.load_state_dict(build().state_dict())
    with pytest.raises(UserError, match=r"gone.pth.*\[weights-file\]$"):
        encoder.load_weights()


def test_normalisation_goes_with_the_weights(weights: str) -> None:
    assert build().normalisation is None
    assert build(weights=weights).normalisation == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


# ---- freezing and stages


def test_stages_of_networks() -> None:
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert list(split_stages(build_net("torchvision/resnet18", 3))) == ["conv1", *layers]
    assert list(split_stages(build_net("timm/resnet18", 3))) == ["conv1", *layers]
    blocks = [f"blocks.{number}" for number in range(7)]
    assert list(split_stages(build_net("timm/tf_efficientnet_lite0", 3))) == ["conv_stem", *blocks, "conv_head"]
    assert list(split_stages(build_net("timm/test_vit", 3))) == ["patch_embed", *blocks[:6]]
    features = [f"features.{number}" for number in range(13)]
    assert list(split_stages(build_net("torchvision/mobilenet_v3_small", 3))) == [*features, "classifier"]


@pytest.mark.parametrize(
    "name", ["torchvision/densenet121", "timm/test_vit", "timm/convnext_atto", "torchvision/swin_t"]
)
def test_every_parameter_is_in_one_stage(name: str) -> None:
    net = build_net(name, 3)
    stages = [id(parameter) for stage in split_stages(net).values() for parameter in stage]
    assert sorted(stages) == sorted(id(parameter) for parameter in net.parameters())


def test_what_has_no_kernel_joins_the_stage_before() -> None:
    net = build_net("timm/test_vit", 3)
    stages = split_stages(net)
    assert net.cls_token is stages["patch_embed"][0] and net.pos_embed is stages["patch_embed"][1]
    assert net.norm.bias is stages["blocks.5"][-1]


def test_frozen_stages_are_those_before() -> None:
    net = build_net(SMALL, 3)
    names, stages = list(split_stages(net)), list(split_stages(net).values())
    for place, name in enumerate(names):
        assert list(map(len, frozen_stages(net, name, "option"))) == list(map(len, stages[:place]))
    assert frozen_stages(net, "all", "option") == []
    assert len(frozen_stages(net, "none", "option")) == len(stages)


@pytest.mark.parametrize("trainable_from", ["layer4", "blocks", "blocks.9", "blocks.2.0", "bn1", ""])
def test_unknown_stages(trainable_from: str) -> None:
    with pytest.raises(UserError) as error:
        build(trainable_from=trainable_from)
    assert error.value.code == "model.encoder.trainable_from" and "conv_stem, blocks.0, blocks.1" in str(error.value)


def train_one_step(encoder: Backbone) -> set[str]:
    """The entries of the state dict that a training step changes."""
    before = {key: value.clone() for key, value in encoder.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    encoder.train()
    encoder(torch.rand(4, 2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    return {key for key, value in encoder.net.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize(
    ("trainable_from", "frozen"),
    [
        ("all", []),
        ("conv_stem", []),
        ("blocks.0", ["conv_stem", "bn1"]),
        ("blocks.2", ["conv_stem", "bn1", "blocks.0", "blocks.1"]),
        ("conv_head", ["conv_stem", "bn1", "blocks"]),
    ],
)
def test_what_comes_before_stays_as_it_is_batch_statistics_too(
    weights: str, trainable_from: str, frozen: list[str]
) -> None:
    encoder = build(weights=weights, trainable_from=trainable_from)
    encoder.load_weights()
    changed = train_one_step(encoder)
    kept = {key for key in encoder.net.state_dict() if key.startswith(tuple(f"{name}." for name in frozen))}
    assert not changed & kept
    assert changed == set(encoder.net.state_dict()) - kept
    assert not encoder.is_frozen


def test_a_frozen_encoder_says_the_same_in_training(weights: str) -> None:
    encoder = build(weights=weights, trainable_from="none")
    encoder.load_weights()
    frames = torch.rand(2, 2, 3, 32, 32)
    expected = encoder.eval()(frames)
    assert torch.equal(encoder.train()(frames), expected) and not expected.requires_grad
    assert encoder.is_frozen and encoder.stages() == []
    assert not any(part.training for part in encoder.net.modules())


@pytest.mark.parametrize(("name", "shift"), [(SMALL, False), ("torchvision/resnet18", True)])
def test_a_frozen_encoder_takes_one_clip_after_another(name: str, shift: bool) -> None:
    """So that its memory on a CPU is that of one clip, and a clip's features do not hang on its batch."""
    encoder = build(name, trainable_from="none", temporal_shift=shift).eval()
    frames, sizes = torch.rand(3, 4, 3, 32, 32), list[int]()
    alone = torch.cat([encoder(clip[None]) for clip in frames])
    with torch.nn.modules.module.register_module_forward_pre_hook(lambda _, given: sizes.append(len(given[0]))):
        together = encoder(frames)
    assert set(sizes[1:]) == {4}  # after the encoder itself
    assert torch.equal(together, alone)


def test_frozen_parts_rest_from_the_start() -> None:
    encoder = build(trainable_from="blocks.2")  # neither train() nor eval() has been called
    assert encoder.training and not encoder.net.bn1.training and not encoder.net.blocks[1].training
    assert encoder.net.blocks[2].training and encoder.net.bn2.training


def test_batch_norms_may_keep_their_statistics_where_all_else_trains(weights: str) -> None:
    encoder = build(weights=weights, norm_eval=True)
    encoder.load_weights()
    assert train_one_step(encoder) == {name for name, _ in encoder.net.named_parameters()}  # and no buffers


def test_stages_are_what_trains_from_the_input_to_the_output(weights: str) -> None:
    encoder = build(weights=weights, trainable_from="blocks.3")
    names = {id(parameter): name for name, parameter in encoder.net.named_parameters()}
    stages = [{names[id(parameter)].rsplit(".", 1)[0] for parameter in stage} for stage in encoder.stages()]
    assert len(stages) == 3
    assert all(name.startswith("blocks.3.") for name in stages[0])
    assert all(name.startswith("blocks.4.") for name in stages[1])
    assert stages[2] == {"conv_head", "bn2"}
    assert len(build(weights=weights).stages()) == 7


def test_from_scratch_there_are_no_pretrained_stages() -> None:
    assert build().stages() == []


def test_every_size_must_fit_the_network() -> None:
    with pytest.raises(UserError) as error:
        Backbone("torchvision/vit_b_16", None, "all", temporal_shift=False, resolution=224, sizes=2)
    assert error.value.code == "data.resolution"
