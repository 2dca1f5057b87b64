"""The optimiser and how its learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from vidcls.errors import check_choice, check_number


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with a learning-rate schedule.

    Attributes:
        lr: the learning rate at its highest.
        eps: the term that keeps Adam from dividing by zero; Keras uses 1e-7, torch 1e-8.
        weight_decay: decoupled from the gradient, as in AdamW (Loshchilov & Hutter 2019).
        schedule: ``constant``, or ``cosine`` down to zero at the end of training.

    Raises:
        UserError: a setting is out of range.
    """

    lr: float
    eps: float
    weight_decay: float
    schedule: str

    def __post_init__(self) -> None:
        check_number("optim.lr", self.lr)
        check_number("optim.eps", self.eps)
        check_number("optim.weight_decay", self.weight_decay)
        check_choice("optim.schedule", self.schedule, ("constant", "cosine"))

    def build(self, parameters: Iterable[Parameter], total_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimiser over the trainable ``parameters`` and its schedule, to be stepped after every batch."""
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        cosine = self.schedule == "cosine"
        return optimizer, LambdaLR(optimizer, lambda step: cosine_factor(step, total_steps) if cosine else 1.0)


def cosine_factor(step: int, total_steps: int) -> float:
    """From 1 at step 0 along half a cosine to 0 at ``total_steps``.

    Example:
        >>> [round(cosine_factor(step, 4), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))
