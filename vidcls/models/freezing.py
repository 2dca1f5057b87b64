"""Which blocks of a network train: its stages from the input to the output, and freezing all that come before one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn import Parameter

from vidcls.errors import UserError

CONTAINERS = ("encoder", "features", "blocks", "layers", "stages", "trunk_output")
"""What timm and torchvision call a module that holds blocks, each of which is a stage of its own."""


def split_stages(net: nn.Module) -> dict[str, list[Parameter]]:
    """All parameters of a network, in stages from the input to the output.

    A stage is a child of the network, or of one of its `CONTAINERS`. What has no kernel of its own (a normalisation, a
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
            # What came before the first stage is its own; what came before another has joined the one before that.
            last = stages[name] = parameters if stages else last + parameters
        else:
            last.extend(parameters)
    return stages


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, bool, list[Parameter]]]:
    """Name, whether it is a block, and parameters: of the module itself, then of what it holds."""
    yield name, False, list(module.parameters(recurse=False))
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if child_name in CONTAINERS:
            yield from _parts(child, path)
        else:
            yield path, True, list(child.parameters())


def count_frozen(names: Sequence[str], trainable_from: str, knob: str) -> int:
    """How many stages from the first on are frozen.

    Args:
        names: of the stages, from the input to the output.
        trainable_from: ``all`` train, ``none`` does, or the name of the first that does.
        knob: what the configuration calls this, for the error.

    Raises:
        UserError: no such stage.

    Example:
        >>> [count_frozen(["conv1", "layer1", "layer2"], name, "") for name in ("all", "layer2", "none")]
        [0, 2, 3]
    """
    ends = {"all": 0, "none": len(names), **{name: place for place, name in enumerate(names)}}
    if trainable_from not in ends:
        raise UserError(f"{knob} to be one of {', '.join(ends)}", repr(trainable_from), f"Change {knob}.")
    return ends[trainable_from]


def freeze(net: nn.Module, trainable_from: str, knob: str) -> None:
    """Lets the gradient pass by all stages before one, see `count_frozen`."""
    stages = split_stages(net)
    for name in list(stages)[: count_frozen(list(stages), trainable_from, knob)]:
        for parameter in stages[name]:
            parameter.requires_grad = False


def rest_frozen(net: nn.Module, trainable_from: str) -> None:
    """Puts all before a stage, see `count_frozen`, into eval mode.

    There batch-norm neither uses nor changes the statistics of the batch, and nothing is dropped.
    """
    if trainable_from == "all":
        return
    for name, module in net.named_modules():
        if name == trainable_from:
            return
        if trainable_from == "none" or (name and not trainable_from.startswith(f"{name}.")):
            module.eval()
