"""The optimiser, and how the learning rate of each stage of a network goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from vidcls.errors import UserError, check_choice, check_integer, check_number


@dataclass(frozen=True)
class AdamW:
    """Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with a learning-rate schedule.

    Attributes:
        lr: the learning rate at its highest.
        eps: the term that keeps Adam from dividing by zero; Keras uses 1e-7, torch 1e-8.
        weight_decay: decoupled from the gradient, as in AdamW (Loshchilov & Hutter 2019).
        schedule: ``constant``, ``cosine`` down to zero at the end of training, or ``one_cycle``.
        warmup: the share of all steps, 0..1, in which the rate rises.
        encoder_lr_factor: times ``lr`` is the rate of all stages but the last.
        unfreeze_epochs: how long after the stage above it a stage starts to train (Howard & Ruder 2018,
            https://arxiv.org/abs/1801.06146). Until then its rate is 0; where training ends first, it stays as it was.

    Raises:
        UserError: a setting is out of range.
    """

    lr: float
    eps: float
    weight_decay: float
    schedule: str
    warmup: float = 0.0
    encoder_lr_factor: float = 1.0
    unfreeze_epochs: int = 0

    def __post_init__(self) -> None:
        check_number("optim.lr", self.lr)
        check_number("optim.eps", self.eps)
        check_number("optim.weight_decay", self.weight_decay)
        check_choice("optim.schedule", self.schedule, ("constant", "cosine", "one_cycle"))
        check_number("optim.warmup", self.warmup, 0.0, 1.0)
        check_number("optim.encoder_lr_factor", self.encoder_lr_factor)
        check_integer("optim.unfreeze_epochs", self.unfreeze_epochs, minimum=0)
        if self.schedule == "one_cycle" and not 0 < self.warmup < 1:
            raise UserError(
                "optim.warmup between 0 and 1, for optim.schedule=one_cycle",
                f"{self.warmup:g}",
                "Give optim.warmup=0.3 or so.",
            )

    def build(
        self, stages: Sequence[Sequence[Parameter]], total_steps: int, epochs: int
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimiser and its schedule, to be stepped after every batch.

        Args:
            stages: the parameters of a network from its input to its output. What is fixed of them is left out.
            total_steps: of the optimiser, in the whole training.
            epochs: in the whole training.
        """
        groups, factors = [], []
        for place, stage in enumerate(stages):
            trainable = [parameter for parameter in stage if parameter.requires_grad]
            if trainable:
                groups.append({"params": trainable})
                factors.append(self._factor(len(stages) - 1 - place, total_steps, epochs))
        optimizer = torch.optim.AdamW(groups, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, factors)

    def _factor(self, stages_above: int, total_steps: int, epochs: int) -> Callable[[int], float]:
        """What a stage's rate is at each step, as a share of ``lr``."""
        first_step = stages_above * self.unfreeze_epochs * total_steps / max(epochs, 1)
        highest = self.encoder_lr_factor if stages_above else 1.0

        def factor(step: int) -> float:
            if step < first_step:
                return 0.0
            return highest * schedule_factor(self.schedule, step, total_steps, self.warmup)

        return factor


def schedule_factor(schedule: str, step: int, total_steps: int, warmup: float) -> float:
    """The share of the highest learning rate that is due at a step, 0..1.

    Args:
        schedule: see `AdamW`.
        step: counted from 0.
        total_steps: in the whole training.
        warmup: the share of them in which the rate rises.

    Example:
        >>> [round(schedule_factor("cosine", step, 5, warmup=0.2), 3) for step in range(6)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
        >>> [schedule_factor("constant", step, 6, warmup=0.5) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if schedule == "one_cycle":
        return one_cycle_factor(step, total_steps, warmup)
    rising = round(warmup * total_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return cosine_factor(step - rising, total_steps - rising) if schedule == "cosine" else 1.0


def cosine_factor(step: int, total_steps: int) -> float:
    """From 1 at step 0 along half a cosine to 0 at ``total_steps``.

    Example:
        >>> [round(cosine_factor(step, 4), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))


def one_cycle_factor(step: int, total_steps: int, warmup: float) -> float:
    """Half a cosine up from 1/25 to 1, then half a cosine down to 1/250000 at the last step.

    As torch's `OneCycleLR` with its defaults (after Smith & Topin 2018, https://arxiv.org/abs/1708.07120).
    """
    lowest, start = 1 / 250_000, 1 / 25
    last = max(total_steps, 1) - 1
    peak = warmup * (last + 1) - 1  # torch's, not always a whole step; before the first one where training is short
    step = min(step, last)
    if step < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * step / peak)) / 2
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * (step - peak) / (last - peak))) / 2
