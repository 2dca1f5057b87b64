"""Frames to features with a classification network of timm or torchvision: [B, T, C, R, R] to [B, T, D]."""

from __future__ import annotations

import difflib

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from vidcls.errors import UserError
from vidcls.models.pretrained import Pretrained, remove_classifier
from vidcls.models.temporal_shift import TemporalShift, shifted_convolutions
from vidcls.models.weights import repeat_channels, timm_config


class Backbone(Pretrained):
    """Any classification network of timm or torchvision, without its last layer, on each frame on its own.

    Args:
        name: timm/NAME or torchvision/NAME.
        weights: see `Pretrained`.
        trainable_from: see `Pretrained`.
        temporal_shift: whether residual blocks see parts of the frames before and after, see `TemporalShift`.
        resolution: R, in pixels.
        in_channels: C, 3 or 6.
        norm_eval: see `Pretrained`.

    Raises:
        UserError: no such network or stage, one that does not take frames of this size, or one without residual blocks
            where they are to be shifted.
    """

    def __init__(
        self,
        name: str,
        weights: str | None,
        trainable_from: str,
        temporal_shift: bool,
        resolution: int,
        in_channels: int = 3,
        norm_eval: bool = False,
    ) -> None:
        net = build_net(name, in_channels)
        num_features = count_features(net, name, resolution, in_channels)
        super().__init__(net, name, weights, trainable_from, norm_eval)
        self.num_features = num_features  # D
        self.shift = None
        if temporal_shift:
            convolutions = shifted_convolutions(self.net)
            if not convolutions:
                raise UserError(
                    "a network of residual blocks of 2D convolutions, for model.encoder.temporal_shift=true",
                    f"none in {name}",
                    "Give torchvision/resnet18, torchvision/mobilenet_v2 or timm/tf_efficientnet_lite0, say.",
                )
            self.shift = TemporalShift(convolutions)

    def forward(self, frames: Float[Tensor, "B T C R R"]) -> Float[Tensor, "B T D"]:
        """Encodes each frame, with what is shifted to it from others."""
        stack = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # [B*T, C, R, R]
        if self.shift is not None:
            self.shift.num_frames = frames.shape[1]
        features = self.net(stack)  # [B*T, D]
        return torch.unflatten(features, 0, frames.shape[:2])  # [B, T, D]


def build_net(name: str, in_channels: int) -> nn.Module:
    """A network with random weights and no classifier: [B, C, R, R] to [B, D].

    Raises:
        UserError: no such network.
    """
    model = name.partition("/")[2]
    known = [f"torchvision/{known}" for known in torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        import timm  # takes seconds, which networks without it need not pay

        known += [f"timm/{known}" for known in timm.list_models() + timm.list_models(pretrained=True)]
        if name not in known:
            raise UserError(
                "model.encoder.name to be cnn, timm/NAME or torchvision/NAME",
                repr(name),
                f"The nearest are {', '.join(difflib.get_close_matches(name, known, cutoff=0))}.",
            )
        return timm.create_model(model, num_classes=0, in_chans=in_channels)
    # These two would give a tuple while they train.
    options = {"aux_logits": False, "init_weights": True} if model in ("googlenet", "inception_v3") else {}
    net = torchvision.models.get_model(model, weights=None, **options)
    remove_classifier(net)
    if in_channels != 3:
        first = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
        first.in_channels = in_channels
        first.weight = Parameter(repeat_channels(first.weight.detach(), in_channels))
    return net


def count_features(net: nn.Module, name: str, resolution: int, in_channels: int) -> int:
    """D, from encoding one black frame, in eval mode.

    Raises:
        UserError: the network does not take frames of this size.
    """
    try:
        with torch.no_grad():
            features = net.eval()(torch.zeros(1, in_channels, resolution, resolution))
    except (AssertionError, RuntimeError, ValueError) as error:  # too small for so many strides, or of a fixed size
        raise UserError(
            f"data.resolution that {name} takes",
            f"{resolution}: {(str(error).splitlines() or ['refused'])[0]}",
            f"Give data.resolution={native_resolution(name)}, which it was made for.",
        ) from error
    return features.shape[-1]


def native_resolution(name: str) -> int:
    """R of the pictures that a network's weights were trained with."""
    if name.startswith("timm/"):
        return timm_config(name).input_size[-1]
    return torchvision.models.get_model_weights(name.partition("/")[2]).DEFAULT.transforms().crop_size[0]
