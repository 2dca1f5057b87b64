"""A clip's frame features to one vector: [B, T, D] to [B, E]."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vidcls.errors import check_integer


class LSTMHead(nn.Module):
    """The last hidden state of an LSTM over the frames, built and initialised as Keras does.

    Keras has one bias per gate, torch two that are added. The second one is fixed at zero here: trained, the two would
    move together and the bias would learn at twice the rate. So the trainable parameters are Keras' own.

    Args:
        num_features: D.
        hidden_size: E.
    """

    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.num_features = check_integer("model.lstm.hidden_size", hidden_size)  # E
        self.lstm = nn.LSTM(num_features, hidden_size, batch_first=True)
        kernel, recurrent, bias, second_bias = self.lstm.parameters()
        nn.init.xavier_uniform_(kernel)  # all four gates as one kernel, as in Keras
        nn.init.orthogonal_(recurrent)
        nn.init.zeros_(bias)
        nn.init.ones_(bias.detach()[hidden_size : 2 * hidden_size])  # forget gate (Jozefowicz et al. 2015)
        nn.init.zeros_(second_bias)
        second_bias.requires_grad = False

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        """Reads the frames in order."""
        states, _ = self.lstm(features)  # [B, T, E]
        return states[:, -1]


class MeanHead(nn.Module):
    """The mean over the frames: blind to their order, the honest baseline for every head that is not.

    Args:
        num_features: D, which is also E.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Averages the frames."""
        return features.mean(dim=1)
