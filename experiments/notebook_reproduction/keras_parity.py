"""Is model=cnn_lstm the notebook's Keras network? Copies Keras' weights into ours and compares what both say.

Keras is not among the project's requirements: run this where ``pip install keras`` has been added to .venv.

    KERAS_BACKEND=torch python experiments/notebook_reproduction/keras_parity.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import torch
from keras import layers

sys.path.insert(0, str(Path(__file__).parents[2]))
from vidcls.models.classifiers import cnn_lstm

CLASSES, FRAMES, SIDE = 3, 20, 64


def keras_network() -> keras.Sequential:
    """The notebook's network, in the notebook's words."""
    per_frame = [
        layers.TimeDistributed(layer)
        for filters in (32, 64, 128)
        for layer in (layers.Conv2D(filters, (3, 3), padding="same", activation="relu"), layers.MaxPooling2D((2, 2)))
    ]
    return keras.Sequential(
        [
            layers.Input((FRAMES, SIDE, SIDE, 3)),
            *per_frame,
            layers.TimeDistributed(layers.Flatten()),
            layers.LSTM(64),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def main() -> None:
    """Compares parameter counts, outputs with equal weights, and the spread of initial weights."""
    theirs = keras_network()
    ours = cnn_lstm(CLASSES, SIDE, {"channels": [32, 64, 128]}, {"hidden_size": 64}, dropout=0.5).eval()
    ours_state = ours.state_dict()
    fresh = {name: tensor.clone() for name, tensor in ours_state.items()}
    weights = [torch.tensor(weight) for weight in theirs.get_weights()]
    convolutions, (kernel, recurrent, bias, dense, dense_bias) = weights[:6], weights[6:]
    side = SIDE // 8
    kernel = kernel.view(side, side, 128, 256).permute(2, 0, 1, 3).reshape(-1, 256)  # Keras flattens channels last
    copied = [w.permute(3, 2, 0, 1) if w.ndim == 4 else w for w in convolutions]
    copied += [kernel.T, recurrent.T, bias, torch.zeros_like(bias), dense.T, dense_bias]
    for (name, tensor), value in zip(ours_state.items(), copied, strict=True):
        tensor.copy_(value)
        print(f"{name:30} initial std: ours {fresh[name].std():.5f}, Keras {value.std():.5f}")

    clips = np.random.default_rng(0).random((4, FRAMES, SIDE, SIDE, 3), dtype=np.float32)
    said = ours(torch.from_numpy(clips).movedim(-1, 2)).softmax(dim=1).detach().numpy()
    trainable = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    print(f"Keras {keras.__version__}: {theirs.count_params():,} parameters; ours: {trainable:,} trainable")
    print(f"largest difference of a probability: {np.abs(said - theirs.predict(clips, verbose=0)).max():.2e}")


if __name__ == "__main__":
    main()
