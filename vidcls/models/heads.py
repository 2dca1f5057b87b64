"""From a clip's frame features [B, T, D] to one vector [B, E]."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION_UNITS = 64  # of the hidden layer that scores a frame


class Head(nn.Module):
    """The interface of heads."""

    num_features: int  # E


class LSTMHead(Head):
    """The last hidden state of an LSTM over the frames, initialised as in Keras.

    Keras has one bias per gate, torch has two that are added. The second is fixed at zero: training both would double
    the learning rate of the bias.
    """

    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.num_features = hidden_size  # E
        self.lstm = nn.LSTM(num_features, hidden_size, batch_first=True)
        kernel, recurrent, bias, second_bias = self.lstm.parameters()
        nn.init.xavier_uniform_(kernel)  # all four gates as one kernel, as in Keras
        nn.init.orthogonal_(recurrent)
        nn.init.zeros_(bias)
        nn.init.ones_(bias.detach()[hidden_size : 2 * hidden_size])  # forget gate (Jozefowicz et al. 2015)
        nn.init.zeros_(second_bias)
        second_bias.requires_grad = False

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        states, _ = self.lstm(features)  # [B, T, E]
        return states[:, -1]


class Pooling(Head):
    """Pools the states of all frames: ``last``, ``mean``, ``max``, ``attention`` or ``statistics``.

    ``attention`` weights the frames by softmax(u . tanh(W h + b)) (Yang et al. 2016,
    https://aclanthology.org/N16-1174), and starts as the mean, with u = 0. ``statistics`` concatenates mean, standard
    deviation (Snyder et al. 2018), maximum, and mean absolute change from frame to frame: E = 4 D.
    """

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.num_features = 4 * size if kind == "statistics" else size
        if kind == "attention":
            last = nn.Linear(ATTENTION_UNITS, 1, bias=False)
            nn.init.zeros_(last.weight)
            self.score = nn.Sequential(nn.Linear(size, ATTENTION_UNITS), nn.Tanh(), last)

    def forward(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        if self.kind == "last":
            return states[:, -1]
        if self.kind == "mean":
            return states.mean(dim=1)
        if self.kind == "max":
            return states.amax(dim=1)
        if self.kind == "statistics":
            change = F.pad(states.diff(dim=1).abs(), (0, 0, 1, 0)).mean(dim=1)  # that of the first frame is 0
            spread = states.std(dim=1, correction=0)
            return torch.cat([states.mean(dim=1), spread, states.amax(dim=1), change], dim=-1)
        weights = self.score(states).softmax(dim=1)  # [B, T, 1]
        return (weights * states).sum(dim=1)


class Standardise(nn.Module):
    """Subtracts the mean of each feature over the training clips, and divides by the standard deviation."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def fit(self, clips: Float[np.ndarray, "N E"]) -> None:
        """Sets the statistics from ``clips``; constant features are not scaled."""
        from sklearn.preprocessing import StandardScaler  # takes a while

        scaler = StandardScaler().fit(clips.astype(np.float64))
        self.mean.copy_(torch.from_numpy(scaler.mean_))
        self.scale.copy_(torch.from_numpy(scaler.scale_))

    def forward(self, clips: Float[Tensor, "*B E"]) -> Float[Tensor, "*B E"]:
        return (clips - self.mean) / self.scale


class PoolHead(Head):
    """Pools the frames' features. With ``mean`` it ignores their order: a baseline for other heads."""

    def __init__(self, num_features: int, pooling: str = "mean") -> None:
        super().__init__()
        self.pooling = Pooling(pooling, num_features)
        self.num_features = self.pooling.num_features

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        return self.pooling(features)


class RecurrentHead(Head):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) layers over the frames, then pooled.

    ``hidden_size`` is per direction; of two directions, ``pooling=last`` takes each one's own last state.
    """

    def __init__(
        self, num_features: int, cell: str, hidden_size: int, num_layers: int, bidirectional: bool, pooling: str
    ) -> None:
        super().__init__()
        layers = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        self.layers = layers(num_features, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional)
        self.pooling = Pooling(pooling, hidden_size * (2 if bidirectional else 1))
        self.num_features = self.pooling.num_features

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        states, _ = self.layers(features)  # [B, T, E]
        if self.pooling.kind == "last" and self.layers.bidirectional:
            half = self.layers.hidden_size
            return torch.cat([states[:, -1, :half], states[:, 0, half:]], dim=-1)
        return self.pooling(states)


class TransformerHead(Head):
    """A small transformer over ``num_frames`` features (Vaswani et al. 2017), normalisation first."""

    def __init__(
        self, num_features: int, num_frames: int, hidden_size: int, num_layers: int, num_heads: int, pooling: str
    ) -> None:
        super().__init__()
        self.project = nn.Linear(num_features, hidden_size)
        self.positions = nn.Parameter(0.02 * torch.randn(num_frames, hidden_size))
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, 4 * hidden_size, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        self.pooling = Pooling(pooling, hidden_size)
        self.num_features = self.pooling.num_features

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        return self.pooling(self.layers(self.project(features) + self.positions))


def build_head(num_features: int, num_frames: int, name: str, **options: Any) -> Head:
    """The head ``name`` of conf/model/head/."""
    if name == "pool":
        return PoolHead(num_features, **options)
    if name == "transformer":
        return TransformerHead(num_features, num_frames, **options)
    return RecurrentHead(num_features, name, **options)
