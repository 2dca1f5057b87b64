"""The optimiser and the learning rate of each stage of a network, from the options ``optim.*``."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from hydra.utils import get_object
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from vidcls.errors import UserError, check_choice, one_line
from vidcls.training.options import SCHEDULES

SCHEDULE_OPTIONS = ("schedule", "warmup", "encoder_lr_factor", "unfreeze_epochs")
ADAM_OPTIONS = ("eps", "weight_decay")  # of conf/optim/adam.yaml; dropped for optimisers without them


def build_optimizer(
    optim: Mapping[str, Any],
    stages: Sequence[Sequence[Parameter]],
    total_steps: int,
    epochs: float | int,
    fused: bool = False,
) -> dict[str, Any]:
    """An optimiser and its schedule, as Lightning's ``configure_optimizers`` returns them.

    ``optim`` holds the options of conf/optim/adam.yaml, and any keyword of its ``_target_``. ``stages`` are the
    parameters of a network from its input to its output; frozen ones are ignored. A stage's learning rate is 0 until
    its turn (gradual unfreezing, Howard & Ruder 2018, https://arxiv.org/abs/1801.06146). ``fused`` prefers a fused
    implementation, unless ``optim`` names another.

    Raises:
        UserError: the optimiser or scheduler cannot be built from these options.
    """
    own: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "encoder_lr_factor": 1.0, "unfreeze_epochs": 0}
    own |= {name: optim[name] for name in SCHEDULE_OPTIONS if name in optim}
    schedule, encoder_lr_factor = own["schedule"], own["encoder_lr_factor"]
    trainable = [[parameter for parameter in stage if parameter.requires_grad] for stage in stages]
    groups: list[dict[str, Any]] = [{"params": parameters} for parameters in trainable if parameters]
    above = [len(stages) - 1 - index for index, parameters in enumerate(trainable) if parameters]
    if late := sum(stages_above * own["unfreeze_epochs"] >= max(epochs, 1) for stages_above in above):
        note = f"{late} of {len(above)} stages of the network never train: their turn comes after {epochs:g} epochs"
        warnings.warn(f"{note}. Lower optim.unfreeze_epochs, or train longer.", stacklevel=2)
    if above == [0] and (encoder_lr_factor != 1 or own["unfreeze_epochs"]):
        names = "optim.encoder_lr_factor and optim.unfreeze_epochs"
        warnings.warn(f"{names} change nothing: the network has no pretrained stage that trains.", stacklevel=2)
    if isinstance(schedule, Mapping):
        for group, stages_above in zip(groups, above, strict=True):
            group["lr"] = optim["lr"] * (encoder_lr_factor if stages_above else 1.0)
        optimizer = _build("optim", optim, groups, SCHEDULE_OPTIONS, fused)
        scheduler = _build("optim.schedule", schedule, optimizer, left_out=("interval", "monitor"))
        interval, monitor = schedule.get("interval", "epoch"), schedule.get("monitor", "val/loss")
        lr_scheduler = {"scheduler": scheduler, "interval": interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler}

    check_choice("optim.schedule", schedule, SCHEDULES)

    def factor_of(stages_above: int) -> Callable[[int], float]:
        first_step = stages_above * own["unfreeze_epochs"] * total_steps / max(epochs, 1)
        highest = encoder_lr_factor if stages_above else 1.0
        return lambda step: (
            highest * schedule_factor(schedule, step, total_steps, own["warmup"]) if step >= first_step else 0.0
        )

    optimizer = _build("optim", optim, groups, SCHEDULE_OPTIONS, fused)
    scheduler = LambdaLR(optimizer, [factor_of(stages_above) for stages_above in above])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _build(option: str, config: Mapping[str, Any], first: Any, left_out: Sequence[str], fused: bool = False) -> Any:
    keywords = {str(key): value for key, value in config.items() if key not in left_out and key[0] != "_"}
    target = str(config.get("_target_"))
    try:
        build = get_object(target)
        known = signature(build).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            keywords = {name: value for name, value in keywords.items() if name in known or name not in ADAM_OPTIONS}
        if fused and "fused" in known and not {"fused", "foreach", "capturable", "differentiable"} & set(keywords):
            keywords["fused"] = True
        return build(first, **keywords)
    except Exception as error:  # a class of another package may raise anything
        got, remedy = f"{target}: {one_line(error)}", f"Change {option}._target_ or the options beside it."
        raise UserError(f"{option} to name a class and its options", got, remedy, f"{option}._target_") from error


def schedule_factor(schedule: str, step: int, total_steps: int, warmup: float) -> float:
    """The factor of the learning rate at a ``step``, counted from 0.

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
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - rising) / max(total_steps - rising, 1), 1.0)))


def one_cycle_factor(step: int, total_steps: int, warmup: float) -> float:
    """Half a cosine up from 1/25 to 1, then half a cosine down to 1/250000 at the last step.

    As torch's `OneCycleLR` with its defaults (after Smith & Topin 2018, https://arxiv.org/abs/1708.07120).
    """
    lowest, start = 1 / 250_000, 1 / 25
    last = max(total_steps, 1) - 1
    peak = warmup * (last + 1) - 1  # as in torch: may lie between steps, or before the first one in a short training
    step = min(step, last)
    if step < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * step / peak)) / 2
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * (step - peak) / (last - peak))) / 2
