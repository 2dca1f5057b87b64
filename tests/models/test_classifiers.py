"""The networks against Keras' definition: parameters, initial values, equations, shapes, and what they can learn."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from vidcls.errors import UserError
from vidcls.models.classifiers import Classifier, build_classifier, cnn_lstm, cnn_mean
from vidcls.models.encoders import ConvEncoder


def small(
    num_classes: int = 3, resolution: int = 16, channels: tuple[int, ...] = (4, 8), hidden_size: int = 5
) -> Classifier:
    torch.manual_seed(0)
    return cnn_lstm(num_classes, resolution, {"channels": channels}, {"hidden_size": hidden_size}, dropout=0.5)


@pytest.fixture(scope="module")
def notebook() -> Classifier:
    """The notebook's network at its own size."""
    torch.manual_seed(0)
    return cnn_lstm(3, 64, {"channels": [32, 64, 128]}, {"hidden_size": 64}, dropout=0.5)


def layers(model: Classifier) -> tuple[list[nn.Conv2d], nn.LSTM, nn.Linear]:
    (lstm,) = (m for m in model.modules() if isinstance(m, nn.LSTM))
    (dense,) = (m for m in model.modules() if isinstance(m, nn.Linear))
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)], lstm, dense


# ---- parameters and their first values


def test_keras_counts_2207235_parameters(notebook: Classifier) -> None:
    trainable = [p.numel() for p in notebook.parameters() if p.requires_grad]
    fixed = [p for p in notebook.parameters() if not p.requires_grad]
    assert sum(trainable) == 2_207_235
    assert [p.numel() for p in fixed] == [256] and not fixed[0].any()
    convolutions = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 128
    assert sum(trainable) == convolutions + 4 * 64 * (8192 + 64 + 1) + (64 + 1) * 3


def test_kernels_fill_the_glorot_range(notebook: Classifier) -> None:
    convs, lstm, dense = layers(notebook)
    fans = [(conv.weight, 9 * conv.in_channels, 9 * conv.out_channels) for conv in convs]
    fans += [(lstm.weight_ih_l0, 8192, 4 * 64), (dense.weight, 64, 3)]  # Keras: one kernel for the four gates
    for weight, fan_in, fan_out in fans:
        kernel = weight.detach()
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert kernel.abs().max() <= bound
        assert kernel.abs().max() > 0.97 * bound  # uniform: some value comes close to the bound
        assert kernel.mean().abs() < 4 * bound / math.sqrt(3 * kernel.numel())
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_recurrent_kernel_is_orthogonal(notebook: Classifier) -> None:
    recurrent = layers(notebook)[1].weight_hh_l0  # [4 E, E]; Keras' is the transpose, orthonormal rows
    assert recurrent.shape == (256, 64)
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(64), atol=1e-5, rtol=0)


def test_biases_are_zero_but_the_forget_gates(notebook: Classifier) -> None:
    convs, lstm, dense = layers(notebook)
    assert not any(layer.bias.any() for layer in [*convs, dense])
    gates = lstm.bias_ih_l0.view(4, 64)  # torch's order: input, forget, cell, output
    assert gates[1].eq(1).all() and not gates[[0, 2, 3]].any()
    assert not lstm.bias_hh_l0.any()


def test_initial_values_follow_the_seed() -> None:
    torch.manual_seed(1)
    other = cnn_lstm(3, 16, {"channels": (4, 8)}, {"hidden_size": 5}, dropout=0.5)
    first, again = small(), small()
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(layers(first)[1].weight_ih_l0, layers(other)[1].weight_ih_l0)


def test_the_notebooks_network_is_what_it_has_always_been(notebook: Classifier) -> None:
    """Names, values and logits of seed 0, as the first version of this network gave them: old runs go on as before."""
    expected = {
        "encoder.layers.0.weight": 0.07714249938726425,
        "encoder.layers.0.bias": 0.0,
        "encoder.layers.3.weight": -0.035890690982341766,
        "encoder.layers.3.bias": 0.0,
        "encoder.layers.6.weight": -0.021690145134925842,
        "encoder.layers.6.bias": 0.0,
        "head.lstm.weight_ih_l0": 0.0077204653061926365,
        "head.lstm.weight_hh_l0": 0.03599090129137039,
        "head.lstm.bias_ih_l0": 0.0,
        "head.lstm.bias_hh_l0": 0.0,
        "output.weight": -0.123400017619133,
        "output.bias": 0.0,
    }
    last = {name: float(value.flatten()[-1]) for name, value in notebook.state_dict().items()}
    assert list(last) == list(expected)  # in this order: optimisers know parameters by their place
    assert last == pytest.approx(expected, abs=1e-7)
    clips = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = copy.deepcopy(notebook).eval()(clips)
    expected_logits = [
        [0.10537421703338623, 0.028630860149860382, -0.03463182598352432],
        [0.1067061722278595, 0.019381821155548096, -0.03576892614364615],
    ]
    torch.testing.assert_close(logits, torch.tensor(expected_logits), atol=1e-6, rtol=0)


# ---- the function they compute


def convolution_same(frame: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3, zero padding; frame [C, H, W], kernel [O, C, 3, 3], bias [O]: Keras' definition, pixel by pixel."""
    _, height, width = frame.shape
    padded = np.pad(frame, ((0, 0), (1, 1), (1, 1)))
    out = np.empty((len(kernel), height, width))
    for y in range(height):
        for x in range(width):
            out[:, y, x] = (kernel * padded[None, :, y : y + 3, x : x + 3]).sum((1, 2, 3)) + bias
    return out


def max_pool(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[1] // 2, frame.shape[2] // 2
    return frame[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2).max((2, 4))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(model: Classifier, clip: np.ndarray) -> np.ndarray:
    """The notebook's network for one clip [T, 3, R, R], written out: logits [K]."""
    convs, lstm, dense = layers(model)
    kernel, recurrent, bias = (p.detach().double().numpy() for p in list(lstm.parameters())[:3])
    hidden = cell = np.zeros(recurrent.shape[1])
    for frame in clip:
        for conv in convs:
            weight, offset = (p.detach().double().numpy() for p in conv.parameters())
            frame = max_pool(np.maximum(convolution_same(frame, weight, offset), 0))
        i, f, g, o = np.split(kernel @ frame.ravel() + recurrent @ hidden + bias, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
    return dense.weight.detach().double().numpy() @ hidden + dense.bias.detach().double().numpy()


@pytest.mark.parametrize("resolution", [8, 11])
def test_forward_is_keras_network_written_out(resolution: int) -> None:
    model = small(resolution=resolution).eval()
    with torch.no_grad():  # biases that are not zero, so that each of them counts
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.uniform_(-0.5, 0.5)
    clips = np.random.default_rng(0).random((2, 4, 3, resolution, resolution))
    logits = model(torch.tensor(clips, dtype=torch.float32))
    for clip, logit in zip(clips, logits, strict=True):
        np.testing.assert_allclose(logit.detach().numpy(), by_hand(model, clip), atol=2e-6)


def test_pooling_before_relu_is_the_same_function() -> None:
    encoder = small().encoder
    assert isinstance(encoder, ConvEncoder)
    frames = torch.randn(2, 3, 3, 16, 16)
    stack = frames.flatten(0, 1)
    for conv in (m for m in encoder.modules() if isinstance(m, nn.Conv2d)):
        stack = F.max_pool2d(F.relu(conv(stack)), 2)
    torch.testing.assert_close(encoder(frames), stack.flatten(1).view(2, 3, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("resolution", [4, 9, 16])
def test_any_number_of_frames_and_any_resolution(frames: int, resolution: int) -> None:
    model = small(num_classes=4, resolution=resolution).eval()
    assert model(torch.rand(2, frames, 3, resolution, resolution)).shape == (2, 4)


def test_memory_layout_does_not_matter() -> None:
    model = small().eval()
    clips = torch.rand(2, 4, 3, 16, 16)
    channels_last = clips.movedim(2, -1).contiguous().movedim(-1, 2)  # as the store's frames come
    assert not channels_last.is_contiguous()
    assert torch.equal(model(clips), model(channels_last))


def test_a_clip_is_classified_alike_in_any_batch() -> None:
    model = small().eval()
    clips = torch.rand(5, 4, 3, 16, 16)
    alone = torch.cat([model(clip[None]) for clip in clips])
    torch.testing.assert_close(model(clips), alone, rtol=1e-5, atol=1e-6)


def test_dropout_is_on_in_training_only() -> None:
    model, clips = small(hidden_size=32), torch.rand(2, 4, 3, 16, 16)
    assert not torch.equal(model(clips), model(clips))
    assert torch.equal(model.eval()(clips), model(clips))


def test_mean_ignores_the_order_of_frames_and_lstm_does_not() -> None:
    torch.manual_seed(0)
    mean = cnn_mean(3, 16, {"channels": [4, 8]}, dropout=0.5).eval()
    clips = torch.rand(2, 6, 3, 16, 16)
    torch.testing.assert_close(mean(clips), mean(clips.flip(1)), rtol=1e-5, atol=1e-6)
    lstm = small().eval()
    assert (lstm(clips) - lstm(clips.flip(1))).abs().max() > 1e-3


# ---- training


def test_gradients_reach_all_that_is_trainable_and_nothing_else() -> None:
    model = small()
    F.cross_entropy(model(torch.rand(4, 3, 3, 16, 16)), torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.lstm.bias_hh_l0"]


def fit(model: Classifier, clips: Tensor, labels: Tensor, steps: int) -> float:
    """Accuracy on the training clips after so many full-batch steps."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(clips), labels).backward()
        optimizer.step()
    return float((model.eval()(clips).argmax(1) == labels).float().mean())


def test_overfits_eight_clips_to_100_percent() -> None:
    model = small(num_classes=2, hidden_size=16)
    clips = torch.rand(8, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert fit(model, clips, torch.tensor([0, 1] * 4), steps=100) == 1.0
    assert not layers(model)[1].bias_hh_l0.any()


def test_only_the_lstm_learns_an_order() -> None:
    frames = torch.rand(4, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    clips, labels = torch.cat([frames, frames.flip(1)]), torch.tensor([0] * 4 + [1] * 4)
    torch.manual_seed(0)
    mean = cnn_mean(2, 16, {"channels": [4, 8]}, dropout=0.0)
    assert fit(mean, clips, labels, steps=50) == 0.5
    assert fit(small(num_classes=2, hidden_size=16), clips, labels, steps=150) == 1.0


# ---- models of other packages

OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, num_frames, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, num_classes))

    def forward(self, clips):
        return self.layers(clips)


def number():
    return 7
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)  # as a user's own folder
    return "their_models"


def build_own(target: str, trust: list[str], **options: Any) -> Classifier:
    return build_classifier(target, options, num_classes=3, resolution=8, num_frames=4, trust=trust)


def test_any_module_is_a_classifier(own_package: str) -> None:
    model = build_own("their_models.Net", [own_package], width=5)
    frames = torch.rand(2, 4, 3, 8, 8)
    assert model(frames).shape == (2, 3)
    assert torch.equal(model.classify(model.encode(frames)), model(frames))
    assert not model.encoder.is_frozen and model.encoder.normalisation is None
    assert [len(stage) for stage in model.stages()] == [4]


@pytest.mark.parametrize(
    ("target", "trust", "options", "code"),
    [
        ("their_models.Net", [], {"width": 5}, "untrusted-model"),
        ("their_models.Net", ["torch"], {"width": 5}, "untrusted-model"),
        ("vidcls.models.classifiers.signature", [], {}, "untrusted-model"),
        ("vidcls.models.classifiers._find", [], {}, "untrusted-model"),
        ("vidcls.files.write_atomically", [], {}, "untrusted-model"),
        ("their_models.Nit", ["their_models"], {}, "unknown-model"),
        ("their_modules.Net", ["their_modules"], {}, "unknown-model"),
        ("their_models.Net", ["their_models"], {}, "model-options"),
        ("their_models.Net", ["their_models"], {"wdith": 5}, "model-options"),
        ("their_models.number", ["their_models"], {}, "not-a-network"),
    ],
)
def test_models_that_are_refused(
    own_package: str, target: str, trust: list[str], options: dict[str, Any], code: str
) -> None:
    with pytest.raises(UserError) as error:
        build_own(target, trust, **options)
    assert error.value.code == code


def test_a_network_without_torchvision_does_not_import_it() -> None:
    code = "import sys, vidcls.models.classifiers; print([n for n in ('torchvision', 'timm') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("target", ["torch.nn.Flatten", "torch.nn.Identity"])
def test_a_model_of_ones_own_with_other_outputs_than_classes_is_refused(target: str) -> None:
    """More logits than classes would train: cross-entropy asks only that each label has one."""
    model = build_classifier(target, {}, 3, 8, 4, trust=["torch"])
    with pytest.raises(UserError) as error:
        model(torch.zeros(2, 4, 3, 8, 8))
    assert error.value.code == "model-output"
