"""Weights that timm's and torchvision's networks were trained to: where they come from, and loading them strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from vidcls.errors import UserError

TORCHVISION_CLASSIFIERS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")
HALF_CENTRED = ("torchvision/googlenet", "torchvision/inception_v3")

State = dict[str, Tensor]


def knob(name: str, key: str) -> str:
    """What the configuration calls a setting of a network: those of single frames are an encoder of a model.

    Example:
        >>> knob("timm/resnet18", "weights"), knob("r3d_18", "weights")
        ('model.encoder.weights', 'model.weights')
    """
    return f"model.encoder.{key}" if "/" in name else f"model.{key}"


def normalisation(name: str) -> dict[str, list[float]]:
    """What a network's weights were trained with: ``mean`` and ``std`` per channel, of pixels in 0..1.

    Args:
        name: as in `load_weights`.
    """
    if name.startswith("timm/"):
        transforms = timm_config(name)
    elif name in HALF_CENTRED:
        # From Tensorflow. Torchvision takes pixels normalised otherwise, and has these networks put that right.
        return {"mean": [0.5] * 3, "std": [0.5] * 3}
    else:
        transforms = get_model_weights(name.rpartition("/")[2]).DEFAULT.transforms()
    return {"mean": [float(value) for value in transforms.mean], "std": [float(value) for value in transforms.std]}


def timm_config(name: str) -> Any:
    """What timm knows of the weights of a network: ``mean``, ``std``, ``input_size``, ``classifier``."""
    import timm  # takes seconds, which networks without it need not pay

    return timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=False)


def load_weights(net: nn.Module, name: str, weights: str) -> None:
    """Loads all parameters and statistics of a network from whose end the classifier has been removed.

    Args:
        net: the network; where its first convolution takes more than three channels, see `repeat_channels`.
        name: timm/NAME, torchvision/NAME, or the name of a video network of torchvision.
        weights: ``default``, the library's own, which it downloads; or the path of a state dict, alone or under
            ``state_dict`` or ``model`` (.safetensors, or what `torch.load` reads with ``weights_only=True``).

    Raises:
        UserError: there are no such weights, or they lack something, or have something that the network has not; but
            for the classifier.
    """
    state = _download(name) if weights == "default" else _read(Path(weights), name)
    # Densenet's files are older than its present names; torchvision renames while it downloads.
    state = {re.sub(r"(denselayer\d+\.(norm|conv))\.([12]\.)", r"\1\3", key): value for key, value in state.items()}
    classifier = _classifier_prefixes(name)
    expected = net.state_dict()
    first = next(f"{path}.weight" for path, part in net.named_modules() if isinstance(part, (nn.Conv2d, nn.Conv3d)))
    if first in state and state[first].ndim == 4 and state[first].shape[1] == 3:
        state[first] = repeat_channels(state[first], expected[first].shape[1])

    # Batch-norm counts batches, which nothing here reads and old files lack.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected and not key.startswith(classifier)]
    shared = {key: value for key, value in state.items() if key in expected}
    reshaped = [
        f"{key} {list(value.shape)} for {list(expected[key].shape)}"
        for key, value in shared.items()
        if value.shape != expected[key].shape
    ]
    if missing or unexpected or reshaped:
        faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        raise UserError(
            f"{knob(name, 'weights')} to have what {name} has, in the same shapes",
            f"{weights}: {'; '.join(_first_few(fault, keys) for fault, keys in faults if keys)}",
            f"Give the weights of {name}, or change {knob(name, 'name')}.",
        )
    net.load_state_dict(shared, strict=False)


def repeat_channels(kernel: Float[Tensor, "O 3 H W"], channels: int) -> Float[Tensor, "O C H W"]:
    """A kernel for C channels, a multiple of 3: repeated, and scaled so that what comes out stays as large.

    As `timm.models.adapt_input_conv` does.

    Example:
        >>> repeat_channels(torch.tensor([2.0, 4, 6]).view(1, 3, 1, 1), 6).flatten()
        tensor([1., 2., 3., 1., 2., 3.])
    """
    repeats = channels // 3
    return kernel.repeat(1, repeats, 1, 1) / repeats


def _first_few(fault: str, keys: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {fault}: {', '.join(keys[:most])}{rest}"


def _classifier_prefixes(name: str) -> tuple[str, ...]:
    names = timm_config(name).classifier or () if name.startswith("timm/") else TORCHVISION_CLASSIFIERS
    return tuple(f"{prefix}." for prefix in ([names] if isinstance(names, str) else names))


def _download(name: str) -> State:
    library, _, model = name.rpartition("/")
    try:
        if library == "timm":
            import timm

            return timm.create_model(model, pretrained=True, num_classes=0).state_dict()
        return get_model(model, weights="DEFAULT", progress=False).state_dict()
    except Exception as error:  # each library, and each of those that they download with, has its own
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{library or 'torchvision'} to download the weights of {name}",
            f"{type(error).__name__}: {reason}",
            f"Check the network, or give {knob(name, 'weights')} the path of a file with a state dict.",
        ) from error


def _read(path: Path, name: str) -> State:
    expected = f"{knob(name, 'weights')} to be null, default, or the path of a state dict"
    if not path.is_file():
        raise UserError(expected, f"no such file: {path}", "Check the path.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # what is no such file makes the readers stumble in any way
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(
            expected, f"{path}, which cannot be read: {reason}", "Save it again: torch.save(net.state_dict(), PATH)."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(expected, f"{path}, which holds something else", "Save net.state_dict().")
    return dict(state)
