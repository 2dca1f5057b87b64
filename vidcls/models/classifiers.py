"""Videos to logits: [B, T, 3, R, R] to [B, K]. Each model is a function whose keywords are the keys of conf/model/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor, nn

from vidcls.errors import check_number
from vidcls.models.encoders import ConvEncoder
from vidcls.models.heads import LSTMHead, MeanHead


class FrameClassifier(nn.Module):
    """Encodes each frame, joins a clip's frames into one vector, and classifies that.

    Args:
        encoder: [B, T, 3, R, R] to [B, T, D].
        head: [B, T, D] to [B, E].
        num_features: E.
        dropout: probability, before the last layer.
        num_classes: K.
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, num_features: int, dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.dropout = nn.Dropout(check_number("model.dropout", dropout, 0.0, 1.0))
        self.output = nn.Linear(num_features, num_classes)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, frames: Float[Tensor, "B T 3 R R"]) -> Float[Tensor, "B K"]:
        """Classifies normalised clips."""
        features = self.encoder(frames)  # [B, T, D]
        clip = self.head(features)  # [B, E]
        return self.output(self.dropout(clip))  # [B, K]


class ConvSettings(TypedDict):
    """Keywords of `ConvEncoder` that a configuration chooses."""

    channels: Sequence[int]


class LSTMSettings(TypedDict):
    """Keywords of `LSTMHead` that a configuration chooses."""

    hidden_size: int


def cnn_lstm(
    num_classes: int, resolution: int, encoder: ConvSettings, lstm: LSTMSettings, dropout: float
) -> FrameClassifier:
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
    return FrameClassifier(frames, head, head.num_features, dropout, num_classes)


def cnn_mean(num_classes: int, resolution: int, encoder: ConvSettings, dropout: float) -> FrameClassifier:
    """`cnn_lstm` with the LSTM replaced by a mean over the frames: what can be told without their order."""
    frames = ConvEncoder(**encoder, resolution=resolution)
    head = MeanHead(frames.num_features)
    return FrameClassifier(frames, head, head.num_features, dropout, num_classes)
