"""The options of train.py that are checked before torch and Lightning are imported."""

from __future__ import annotations

from omegaconf import DictConfig

from vidcls.errors import check_choice, check_integer, check_number
from vidcls.metrics.objectives import LOWER_IS_BETTER


def check_train_options(cfg: DictConfig) -> None:
    """Refuses options that are out of range.

    Raises:
        UserError: says which.
    """
    check_integer("seed", cfg.seed, minimum=0)
    check_choice("objective", cfg.objective, tuple(LOWER_IS_BETTER))
    check_integer("trainer.max_epochs", cfg.trainer.max_epochs)
    check_choice("loss.class_weights", cfg.loss.class_weights, ("none", "balanced"))
    check_number("loss.label_smoothing", cfg.loss.label_smoothing, 0.0, 1.0)
    for name in ("lr", "eps", "weight_decay", "encoder_lr_factor"):
        check_number(f"optim.{name}", cfg.optim.get(name, 0.0))
    check_number("optim.warmup", cfg.optim.warmup, 0.0, 1.0)
    check_integer("optim.unfreeze_epochs", cfg.optim.unfreeze_epochs, minimum=0)
    if not isinstance(cfg.optim.schedule, DictConfig):
        check_choice("optim.schedule", cfg.optim.schedule, ("constant", "cosine", "one_cycle"))
    for name in ("flip", "jitter"):
        check_number(f"augment.{name}", cfg.augment[name], 0.0, 1.0)
    check_number("augment.crop_scale", cfg.augment.crop_scale, 0.01, 1.0)
    check_integer("augment.randaugment", cfg.augment.randaugment, minimum=0)
    check_integer("augment.randaugment_magnitude", cfg.augment.randaugment_magnitude, minimum=0)
    check_number("augment.randaugment_magnitude", cfg.augment.randaugment_magnitude, 0.0, 30.0)
    check_number("augment.mixup", cfg.augment.mixup)
    check_number("augment.cutmix", cfg.augment.cutmix)
