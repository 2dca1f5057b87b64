"""A network of 3D convolutions, in 20 lines; nothing of it knows vidcls."""

from torch import Tensor, nn


class Tiny3D(nn.Module):
    """Two 3D convolutions, a mean over time and space, and a linear layer: [B, T, 3, R, R] to [B, K]."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(3, width, kernel_size=3, stride=(1, 2, 2), padding=1),
            nn.ReLU(),
            nn.Conv3d(width, 2 * width, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of normalised clips."""
        features = self.features(clips.transpose(1, 2))  # [B, C, T, H, W]
        return self.classifier(features.mean(dim=(2, 3, 4)))
