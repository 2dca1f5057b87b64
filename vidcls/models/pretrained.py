"""What encoders around networks of timm and torchvision share: weights, freezing, stages."""

from __future__ import annotations

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from vidcls.errors import UserError
from vidcls.models.encoders import Encoder
from vidcls.models.freezing import freeze, rest_frozen, split_stages
from vidcls.models.weights import knob, load_weights, normalisation


class Pretrained(Encoder):
    """An encoder around a network that others have trained. Built at random; `load_weights` brings what it learned.

    Args:
        net: the network, without its classifier.
        name: of the network, see `vidcls.models.weights.load_weights`.
        weights: ``default``, a path, or None: it starts from scratch.
        trainable_from: ``all``, ``none``, or the first stage that trains, see `vidcls.models.freezing`.
        norm_eval: whether batch norms keep the statistics that they came with also where their stage trains.

    Raises:
        UserError: no such stage.
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
        freeze(net, trainable_from, knob(name, "trainable_from"))
        self.train()

    def load_weights(self) -> None:
        """Loads the weights that were asked for.

        Raises:
            UserError: they do not fit, or none were asked for although something is frozen.
        """
        if self.weights is not None:
            load_weights(self.net, self.name, self.weights)
            return
        for setting, value, instead in (
            ("trainable_from", self.trainable_from, "all"),
            ("norm_eval", str(self.norm_eval).lower(), "false"),
        ):
            if value != instead:
                raise UserError(
                    f"{knob(self.name, 'weights')}, as {knob(self.name, setting)}={value} keeps what does not train as "
                    "it is",
                    "null: random values",
                    f"Give {knob(self.name, 'weights')}=default or a path, or {knob(self.name, setting)}={instead}.",
                )

    def stages(self) -> list[list[Parameter]]:
        """The pretrained parameters that train on; none where the network starts from scratch."""
        if self.weights is None:
            return []
        stages = [[p for p in stage if p.requires_grad] for stage in split_stages(self.net).values()]
        return [stage for stage in stages if stage]

    def train(self, mode: bool = True) -> Pretrained:
        """As for any module, but what is frozen stays in eval mode."""
        super().train(mode)
        rest_frozen(self.net, self.trainable_from)
        if self.norm_eval:
            for part in self.net.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self


def remove_classifier(net: nn.Module) -> int:
    """Puts identities in the place of the last layer of a torchvision network and of the dropout before it.

    Returns:
        D, how many features that layer took.
    """
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
