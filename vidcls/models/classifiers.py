"""From clips [B, T, 3, R, R] to logits [B, K]. Each model is a function whose keywords are the keys of conf/model/."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from inspect import isfunction, signature
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from vidcls.errors import UserError, one_line
from vidcls.models.encoders import ConvEncoder, Encoder
from vidcls.models.heads import LSTMHead, PoolHead, Standardise, build_head
from vidcls.models.motion import MotionCrop, MultiResolution, build_motion


class Classifier(nn.Module):
    """Encoder ([B, T, 3, R, R] to [B, T', D] or [B, D]), head (to [B, E]), `Standardise`, dropout and output layer."""

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        num_features: int,
        dropout: float,
        num_classes: int,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.standardise = Standardise(num_features) if standardise else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(num_features, num_classes)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def encode(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B *features"]:
        return self.encoder(frames)

    def embed(self, features: Float[Tensor, "B *features"]) -> Float[Tensor, "B E"]:
        """The clip vectors, which are the input of the output layer."""
        return self.standardise(self.head(features))

    def classify(self, features: Float[Tensor, "B *features"]) -> Float[Tensor, "B K"]:
        return self.output(self.dropout(self.embed(features)))

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B K"]:
        return self.classify(self.encode(frames))

    def stages(self) -> list[list[Parameter]]:
        """The parameters from the input to the output; the last stage is all that is not pretrained."""
        pretrained = self.encoder.stages()
        known = {id(parameter) for stage in pretrained for parameter in stage}
        return [*pretrained, [parameter for parameter in self.parameters() if id(parameter) not in known]]


class PlainNetwork(Classifier):
    """Any network from float [B, T, 3, R, R] to logits [B, K], as a `Classifier` whose encoder is empty."""

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        nn.Module.__init__(self)
        self.encoder = Encoder()
        self.standardise = nn.Identity()
        self.net = net
        self.num_classes = num_classes

    def encode(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B T 3 R R"]:
        return frames

    def classify(self, features: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B K"]:
        logits: Tensor = self.net(features)
        shape = tuple(getattr(logits, "shape", ()))
        if len(shape) != 2 or shape[1] != self.num_classes:  # more logits than classes would train silently
            got = f"shape {list(shape)}" if shape else type(logits).__name__
            remedy = "Give its last layer one output per class: it is passed num_classes if it takes that."
            raise UserError(f"logits [B, {self.num_classes}] of {type(self.net).__name__}", got, remedy, "model-output")
        return logits


def cnn_lstm(
    num_classes: int, resolution: int, encoder: dict[str, Any], lstm: dict[str, Any], dropout: float
) -> Classifier:
    """The notebook's network: three convolutions per frame, an LSTM over the frames, its last state classified.

    Example:
        >>> model = cnn_lstm(3, 64, {"channels": [32, 64, 128]}, {"hidden_size": 64}, dropout=0.5)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        2207235
    """
    frames = ConvEncoder(**encoder, resolution=resolution)
    head = LSTMHead(frames.num_features, **lstm)
    return Classifier(frames, head, head.num_features, dropout, num_classes)


def cnn_mean(num_classes: int, resolution: int, encoder: dict[str, Any], dropout: float) -> Classifier:
    """`cnn_lstm` with a mean over the frames instead of the LSTM: a baseline that ignores their order."""
    frames = ConvEncoder(**encoder, resolution=resolution)
    head = PoolHead(frames.num_features)
    return Classifier(frames, head, head.num_features, dropout, num_classes)


def encoder_head(
    num_classes: int,
    resolution: int,
    num_frames: int,
    encoder: dict[str, Any],
    head: dict[str, Any],
    motion: str,
    dropout: float,
    standardise: bool = False,
    sizes: int = 1,
) -> Classifier:
    """Any encoder of frames (``name: cnn`` or a `Backbone`) under any head (see `build_head`)."""

    def build(channels: int) -> Encoder:
        if encoder["name"] == "cnn":
            return ConvEncoder(encoder["channels"], resolution=resolution, in_channels=channels)
        from vidcls.models.backbones import Backbone  # imports torchvision, which takes seconds

        return Backbone(**encoder, resolution=resolution, in_channels=channels, sizes=sizes)

    frames, length = build_motion(motion, num_frames, build)
    if sizes > 1:
        frames = MultiResolution(frames, sizes)
    over_time = build_head(frames.num_features, length, **head)
    return Classifier(frames, over_time, over_time.num_features, dropout, num_classes, standardise)


def video(
    num_classes: int,
    resolution: int,
    num_frames: int,
    name: str,
    weights: str | None,
    trainable_from: str,
    dropout: float,
    norm_eval: bool = False,
    standardise: bool = False,
    motion_crop: int | None = None,
) -> Classifier:
    """A video network on whole clips, see `VideoNet`; with ``motion_crop`` on what `MotionCrop` cuts from them."""
    from vidcls.models.backbones import VideoNet  # imports torchvision

    clips: Encoder = VideoNet(name, weights, trainable_from, motion_crop or resolution, num_frames, norm_eval)
    if motion_crop is not None:
        clips = MotionCrop(clips, motion_crop)
    return Classifier(clips, nn.Identity(), clips.num_features, dropout, num_classes, standardise)


def build_classifier(
    target: str, options: dict[str, Any], num_classes: int, resolution: int, num_frames: int, trust: Sequence[str] = ()
) -> Classifier:
    """The model ``target`` (a `torch.nn.Module` or a function that returns one), with random weights.

    ``target`` must be in this module or in a package of ``trust``, whose code is run. ``options`` are its keywords;
    the other arguments are passed if it takes them.

    Raises:
        UserError: it is not from a trusted package, cannot be imported, or does not take these options.

    Example:
        >>> build_classifier("torch.nn.Flatten", {}, 2, 8, 4, trust=["torch"]).net
        Flatten(start_dim=1, end_dim=-1)
    """
    build = _find(target, trust)
    clip = {"num_classes": num_classes, "resolution": resolution, "num_frames": num_frames}
    try:
        taken = signature(build).parameters
        arguments = options | {name: value for name, value in clip.items() if name in taken}
        signature(build).bind(**arguments)
    except TypeError as error:
        expected = f"the options of {target}{signature(build)}"
        remedy = "Change model.*, or add +model.NAME=VALUE."
        raise UserError(expected, str(error).removeprefix("got "), remedy, "model-options") from error
    try:
        model = build(**arguments)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if build.__module__ != __name__:  # an error in a custom model needs its traceback
            raise
        why = f"{type(error).__name__}: {one_line(error)}"
        remedy = "Change model.*, data.num_frames or data.resolution."
        raise UserError(f"options that {target} takes", why, remedy, "model-options") from error
    if not isinstance(model, nn.Module):
        remedy = "Name a torch.nn.Module, or a function that returns one."
        raise UserError(f"a network from {target}", type(model).__name__, remedy, "not-a-network")
    return model if isinstance(model, Classifier) else PlainNetwork(model, num_classes)


def _find(target: str, trust: Sequence[str]) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    package = target.partition(".")[0]
    if module == __name__:
        build = globals().get(name)
        if isfunction(build) and build.__module__ == __name__ and not name.startswith("_"):
            return build
    elif package in trust:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # for custom modules
        try:
            return getattr(importlib.import_module(module or package), name)
        except (ImportError, AttributeError, ValueError) as error:
            remedy = "Check model._target_: PACKAGE.MODULE.NAME, importable from this folder."
            raise UserError(f"{target} to be importable", str(error), remedy, "unknown-model") from error
    raise UserError(
        f"a model of {__name__}",
        target,
        f"If you trust that package, whose code would be run, add trust={package}.",
        "untrusted-model",
    )
