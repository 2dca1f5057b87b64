"""Videos to logits: [B, T, 3, R, R] to [B, K]. Each model is a function whose keywords are the keys of conf/model/."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from inspect import isfunction, signature
from typing import Any, TypedDict

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from vidcls.errors import UserError, check_number
from vidcls.models.backbones import Backbone
from vidcls.models.encoders import ConvEncoder, Encoder
from vidcls.models.heads import LSTMHead, PoolHead, build_head
from vidcls.models.motion import build_stream
from vidcls.models.video import VideoNet


class Classifier(nn.Module):
    """Encodes a clip's frames, joins them into one vector, and classifies that.

    Args:
        encoder: [B, T, 3, R, R] to [B, T', D], or [B, D] where it has joined them itself.
        head: that to [B, E].
        num_features: E.
        dropout: probability, before the last layer.
        num_classes: K.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, num_features: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.dropout = nn.Dropout(check_number("model.dropout", dropout, 0.0, 1.0))
        self.output = nn.Linear(num_features, num_classes)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def encode(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B *features"]:
        """Features of normalised clips: all that a frozen encoder ever says of them."""
        return self.encoder(frames)

    def classify(self, features: Float[Tensor, "B *features"]) -> Float[Tensor, "B K"]:
        """Logits from features."""
        clip = self.head(features)  # [B, E]
        return self.output(self.dropout(clip))  # [B, K]

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B K"]:
        """Classifies normalised clips."""
        return self.classify(self.encode(frames))

    def stages(self) -> list[list[Parameter]]:
        """The parameters in blocks from the input to the output; the last block is all that starts from scratch."""
        pretrained = self.encoder.stages()
        known = {id(parameter) for stage in pretrained for parameter in stage}
        return [*pretrained, [parameter for parameter in self.parameters() if id(parameter) not in known]]


class ConvSettings(TypedDict):
    """Keywords of `ConvEncoder` that a configuration chooses."""

    channels: Sequence[int]


class LSTMSettings(TypedDict):
    """Keywords of `LSTMHead` that a configuration chooses."""

    hidden_size: int


def cnn_lstm(
    num_classes: int, resolution: int, encoder: ConvSettings, lstm: LSTMSettings, dropout: float
) -> Classifier:
    """The notebook's network: three convolutions per frame, an LSTM over the frames, its last state classified.

    With K = 3, R = 64, channels 32-64-128 and 64 units it has Keras' 2,207,235 trainable parameters (and 256 constant
    zeros, see `LSTMHead`), for any number of frames.

    Example:
        >>> model = cnn_lstm(3, 64, {"channels": [32, 64, 128]}, {"hidden_size": 64}, dropout=0.5)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        2207235
    """
    frames = ConvEncoder(**encoder, resolution=resolution)
    head = LSTMHead(frames.num_features, **lstm)
    return Classifier(frames, head, head.num_features, dropout, num_classes)


def cnn_mean(num_classes: int, resolution: int, encoder: ConvSettings, dropout: float) -> Classifier:
    """`cnn_lstm` with the LSTM replaced by a mean over the frames: what can be told without their order."""
    frames = ConvEncoder(**encoder, resolution=resolution)
    head = PoolHead(frames.num_features)
    return Classifier(frames, head, head.num_features, dropout, num_classes)


def encoder_head(
    num_classes: int,
    resolution: int,
    num_frames: int,
    encoder: dict[str, Any] | str,
    head: dict[str, Any] | str,
    stream: str,
    dropout: float,
) -> Classifier:
    """Any encoder of frames under any head.

    Args:
        num_classes: K.
        resolution: R, in pixels.
        num_frames: T.
        encoder: ``name: cnn`` and the keywords of `ConvEncoder`, or the keywords of `Backbone`.
        head: see `build_head`.
        stream: see `vidcls.models.motion`.
        dropout: see `Classifier`.

    Raises:
        UserError: a setting is out of range, or a group's name is where its knobs should be.
    """
    if isinstance(encoder, str) or isinstance(head, str):
        group, name = ("encoder", encoder) if isinstance(encoder, str) else ("head", head)
        raise UserError(f"model.{group} to hold knobs", repr(name), f"Choose a group: model/{group}={name}.")

    def build(channels: int) -> Encoder:
        if encoder["name"] != "cnn":
            return Backbone(**encoder, resolution=resolution, in_channels=channels)
        knobs = {name: value for name, value in encoder.items() if name != "name"}
        return ConvEncoder(**knobs, resolution=resolution, in_channels=channels)

    frames, length = build_stream(stream, num_frames, build)
    join = build_head(frames.num_features, length, **head)
    return Classifier(frames, join, join.num_features, dropout, num_classes)


def video(
    num_classes: int,
    resolution: int,
    num_frames: int,
    name: str,
    weights: str | None,
    trainable_from: str,
    dropout: float,
    norm_eval: bool = False,
) -> Classifier:
    """A network of whole clips, see `VideoNet`: what encoders of single frames have to beat."""
    clips = VideoNet(name, weights, trainable_from, resolution, num_frames, norm_eval)
    return Classifier(clips, nn.Identity(), clips.num_features, dropout, num_classes)


def build_classifier(
    target: str,
    options: dict[str, Any],
    num_classes: int,
    resolution: int,
    num_frames: int,
    trust: Sequence[str] = (),
) -> Classifier:
    """The model that ``target`` names, a class or a function, with random weights.

    Args:
        target: a dotted name.
        options: its keywords; those below are passed where its signature has them.
        num_classes: K.
        resolution: R, in pixels.
        num_frames: T.
        trust: packages that it may come from, beside this module.

    Raises:
        UserError: it is not from a trusted package, or an option is out of range.
    """
    module, _, name = target.rpartition(".")
    build: Any = None
    if module == __name__:
        build = globals().get(name)
        known = isfunction(build) and build.__module__ == __name__  # a checkpoint must not call just anything
    else:
        known = target.partition(".")[0] in trust
        build = getattr(importlib.import_module(module), name) if known else None
    if not known:
        package = target.partition(".")[0]
        raise UserError(
            f"a model of {__name__}",
            target,
            f"Give trust={package} if you trust that package.",
            "untrusted-model",
        )
    clip = {"num_classes": num_classes, "resolution": resolution, "num_frames": num_frames}
    return build(**options, **{name: value for name, value in clip.items() if name in signature(build).parameters})
