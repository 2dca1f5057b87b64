"""Pretrained networks as encoders: their weights, normalisation, stages and freezing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model_weights

from vidcls.errors import UserError, check_choice
from vidcls.models.downloads import kinetics_weights
from vidcls.models.encoders import Encoder
from vidcls.models.folding import fold_batchnorm
from vidcls.models.i3d import read_kinetics_weights

# Names, in timm and torchvision, of modules whose children are stages.
CONTAINERS = ("encoder", "features", "blocks", "layers", "stages", "trunk_output")
TORCHVISION_CLASSIFIERS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")
HALF_CENTRED = ("i3d", "torchvision/googlenet", "torchvision/inception_v3")

State = dict[str, Tensor]


class Pretrained(Encoder):
    """An encoder around a network without its classifier, with random values until `load_weights`.

    ``weights`` is ``default``, a path, or None to train from scratch. ``trainable_from`` is ``all``, ``none``, or the
    first stage that trains, see `split_stages`. With ``norm_eval``, BatchNorm stays in eval mode everywhere.
    """

    def __init__(self, net: nn.Module, name: str, weights: str | None, trainable_from: str, norm_eval: bool) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.weights = weights
        self.trainable_from = trainable_from
        self.norm_eval = norm_eval
        self.normalisation = None if weights is None else normalisation(name)
        self.is_frozen = trainable_from == "none"
        self._folded: tuple[Any, list[nn.Module]] = (None, [])  # in a list, so that it is no submodule
        for stage in frozen_stages(net, trainable_from, option_path(name, "trainable_from")):
            for parameter in stage:
                parameter.requires_grad = False
        self.train()

    def load_weights(self) -> None:
        if self.weights is not None:
            load_weights(self.net, self.name, self.weights)

    def folded_net(self, inputs: Tensor) -> nn.Module:
        """The network to run on ``inputs``: where it is frozen, in full precision, a copy of it without BatchNorm."""
        if not self.is_frozen or torch.compiler.is_compiling():
            return self.net
        tensors = [*self.net.parameters(), *self.net.buffers()]
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors):
            return self.net
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._folded[0] != state:
            # The first call may be in inference mode and a later one in training.
            with torch.inference_mode(False), torch.autocast(inputs.device.type, enabled=False):
                # Always the same example, so that what is folded does not hang on which video comes first.
                example = torch.randn(1, *inputs.shape[1:], generator=torch.Generator().manual_seed(0)).to(inputs)
                self._folded = (state, [fold_batchnorm(self.net, example)])
        return self._folded[1][0]

    def stages(self) -> list[list[Parameter]]:
        if self.weights is None:  # trained from scratch
            return []
        stages = [[p for p in stage if p.requires_grad] for stage in split_stages(self.net).values()]
        return [stage for stage in stages if stage]

    def train(self, mode: bool = True) -> Pretrained:
        super().train(mode)
        # Frozen layers stay in eval mode: BatchNorm neither uses nor changes batch statistics.
        set_frozen_eval(self.net, self.trainable_from)
        if self.norm_eval:
            for part in self.net.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self


def option_path(name: str, key: str) -> str:
    """The name of a network's option: networks of single frames are the encoder of a model."""
    return f"model.encoder.{key}" if "/" in name else f"model.{key}"


# ---- stages and freezing


def split_stages(net: nn.Module) -> dict[str, list[Parameter]]:
    """All parameters of a network, in stages from the input to the output.

    A stage is a child of the network, or of one of its `CONTAINERS`. A child without a kernel (a normalisation, a
    position embedding) belongs to the stage before it, or to the first one.

    Example:
        >>> stem, norm, blocks = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> net = nn.ModuleDict({"stem": stem, "norm": norm, "blocks": blocks})
        >>> {name: len(parameters) for name, parameters in split_stages(net).items()}
        {'stem': 4, 'blocks.0': 2, 'blocks.1': 2}
    """
    stages: dict[str, list[Parameter]] = {}
    last: list[Parameter] = []
    for name, is_block, parameters in _parts(net, ""):
        if is_block and any(parameter.ndim > 1 for parameter in parameters):
            # Parameters before the first stage belong to it; those between two stages were added to the former.
            last = stages[name] = parameters if stages else last + parameters
        else:
            last.extend(parameters)
    return stages


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, bool, list[Parameter]]]:
    # Name, whether it is a block, and parameters: of the module itself, then of its children.
    yield name, False, list(module.parameters(recurse=False))
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if child_name in CONTAINERS:
            yield from _parts(child, path)
        else:
            yield path, True, list(child.parameters())


def frozen_stages(net: nn.Module, trainable_from: str, option: str) -> list[list[Parameter]]:
    """The stages before ``trainable_from``; raises `UserError` for ``option`` if that is not a stage, all or none."""
    stages = split_stages(net)
    ends = {"all": 0, "none": len(stages), **{name: index for index, name in enumerate(stages)}}
    return list(stages.values())[: ends[check_choice(option, trainable_from, tuple(ends))]]


def set_frozen_eval(net: nn.Module, trainable_from: str) -> None:
    """Puts everything before the stage ``trainable_from`` into eval mode."""
    if trainable_from == "all":
        return
    for name, module in net.named_modules():
        if name == trainable_from:
            return
        if trainable_from == "none" or (name and not trainable_from.startswith(f"{name}.")):
            module.eval()


def remove_classifier(net: nn.Module) -> int:
    """Replaces the last layer of a torchvision network, and the dropout before it, by identities; returns D."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    path, last = [(path, part) for path, part in net.named_modules() if isinstance(part, kinds)][-1]
    parent, _, name = path.rpartition(".")
    owner = net.get_submodule(parent)
    siblings = [sibling for sibling, _ in owner.named_children()]
    for before in siblings[: siblings.index(name)][-1:]:
        if isinstance(getattr(owner, before), nn.Dropout):
            setattr(owner, before, nn.Identity())
    setattr(owner, name, nn.Identity())
    return last.in_features if isinstance(last, nn.Linear) else last.in_channels


# ---- weights


def normalisation(name: str) -> dict[str, list[float]]:
    """The ``mean`` and ``std`` per channel, for pixels in 0..1, with which a network's weights were trained."""
    if name.startswith("timm/"):
        transforms = timm_config(name)
    elif name in HALF_CENTRED:
        # From TensorFlow. torchvision normalises differently, and corrects that inside its two networks.
        return {"mean": [0.5] * 3, "std": [0.5] * 3}
    else:
        transforms = get_model_weights(name.rpartition("/")[2]).DEFAULT.transforms()
    return {"mean": [float(value) for value in transforms.mean], "std": [float(value) for value in transforms.std]}


def timm_config(name: str) -> Any:
    """The configuration in timm of a network's weights: ``mean``, ``std``, ``input_size``, ``classifier``."""
    import timm  # takes seconds

    return timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=False)


def load_weights(net: nn.Module, name: str, weights: str) -> None:
    """Loads all parameters and statistics of a network without its classifier.

    ``weights`` is ``default``, for a download of the library's own, or the path of a state dict, alone or under
    ``state_dict`` or ``model`` (.safetensors, or what `torch.load` reads with ``weights_only=True``).

    Raises:
        UserError: there are no such weights, or keys other than the classifier's are missing or unexpected.
    """
    if weights == "default" and name != "i3d":
        state = _download(name)
    else:
        state = _read(kinetics_weights() if weights == "default" else Path(weights), name)
    # Densenet's files have names from before a change in torchvision.
    state = {re.sub(r"(denselayer\d+\.(norm|conv))\.([12]\.)", r"\1\3", key): value for key, value in state.items()}
    expected = net.state_dict()
    first = next(f"{path}.weight" for path, part in net.named_modules() if isinstance(part, (nn.Conv2d, nn.Conv3d)))
    if first in state and state[first].ndim == 4 and state[first].shape[1] == 3:
        state[first] = repeat_channels(state[first], expected[first].shape[1])
    classifier = timm_config(name).classifier or () if name.startswith("timm/") else TORCHVISION_CLASSIFIERS
    prefixes = tuple(f"{prefix}." for prefix in ([classifier] if isinstance(classifier, str) else classifier))
    shared = {key: value for key, value in state.items() if key in expected}
    faults = {
        # Old files lack BatchNorm's count of batches, which is not used.
        "missing": [key for key in expected if key not in state and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state if key not in expected and not key.startswith(prefixes)],
        "of another shape": [
            f"{key} {list(value.shape)} for {list(expected[key].shape)}"
            for key, value in shared.items()
            if value.shape != expected[key].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {fault}: {_first_few(keys)}" for fault, keys in faults.items() if keys)
        raise UserError(
            f"{option_path(name, 'weights')} with the keys and shapes of {name}",
            f"{weights}: {found}",
            f"Give the weights of {name}, or change {option_path(name, 'name')}.",
            "weights-mismatch",
        )
    net.load_state_dict(shared, strict=False)


def _first_few(keys: list[str]) -> str:
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{', '.join(keys[:3])}{rest}"


def repeat_channels(kernel: Float[Tensor, "O 3 H W"], channels: int) -> Float[Tensor, "O C H W"]:
    """A kernel for C channels, a multiple of 3, repeated and scaled like `timm.models.adapt_input_conv`.

    Example:
        >>> repeat_channels(torch.tensor([2.0, 4, 6]).view(1, 3, 1, 1), 6).flatten()
        tensor([1., 2., 3., 1., 2., 3.])
    """
    return kernel.repeat(1, channels // 3, 1, 1) / (channels // 3)


def _download(name: str) -> State:
    library, _, model = name.rpartition("/")
    try:
        if library == "timm":
            import timm

            return timm.create_model(model, pretrained=True, num_classes=0).state_dict()
        return dict(get_model_weights(model).DEFAULT.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # of the library, or of the one that it downloads with
        raise UserError(
            f"{library or 'torchvision'} to download the weights of {name}",
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            f"Check the network, or set {option_path(name, 'weights')} to the path of a file with a state dict.",
            "weights-download",
        ) from error


def _read(path: Path, name: str) -> State:
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif path.suffix == ".ckpt" and name == "i3d":
            state = read_kinetics_weights(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it does not hold tensors by name")
    except Exception as error:  # files of other types may raise anything
        raise UserError(
            f"{option_path(name, 'weights')} to be null, default, or the path of a state dict",
            f"{path}, which cannot be read: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            "Check the path, or save the weights again: torch.save(net.state_dict(), PATH).",
            "weights-file",
        ) from error
    return dict(state)
