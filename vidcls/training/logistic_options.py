"""Checks for optim=logistic and model.standardise, which need fixed clip vectors. Needs no torch."""

from collections.abc import Mapping
from typing import Any

from vidcls.errors import UserError

LOGISTIC = "vidcls.training.logistic.LogisticRegression"
NO_AUGMENTATION = {"flip": 0, "crop_scale": 1, "jitter": 0, "randaugment": 0, "mixup": 0, "cutmix": 0}


def is_logistic(optim: Mapping[str, Any]) -> bool:
    return optim.get("_target_") == LOGISTIC


def check_fixed_clips(plain: Mapping[str, Any], wanted_by: str, solves: bool) -> None:
    """Refuses what changes clip vectors in training, and, if it ``solves``, options that a converged fit ignores.

    ``plain`` is the configuration of train.py as plain values, ``wanted_by`` the option that needs this. Raises
    `UserError` with the name of the conflicting option as its code.
    """
    model, data, trainer, callbacks = (plain[name] for name in ("model", "data", "trainer", "callbacks"))
    head, augment = model.get("head") or {}, plain["augment"]
    encoder = "model.encoder" if isinstance(model.get("encoder"), dict) else "model"
    frozen = (model["encoder"] if encoder == "model.encoder" else model).get("trainable_from")
    moved = next((name for name, still in NO_AUGMENTATION.items() if augment.get(name, still) != still), None)
    target, devices = str(model["_target_"]), trainer["devices"]
    rules: list[tuple[str, Any, bool, str]] = [  # option, value, whether it is allowed, what is
        ("model._target_", target, target.startswith("vidcls."), "encoder_head or a video network of vidcls"),
        (f"{encoder}.trainable_from", frozen, frozen == "none", "none"),
        ("model.head.name", head.get("name"), head.get("name", "pool") == "pool", "pool"),
        ("model.head.pooling", head.get("pooling"), head.get("pooling") != "attention", "mean or statistics"),
        (f"augment.{moved}", augment.get(moved), moved is None, "augment=none"),
        ("data.temporal_jitter", data["temporal_jitter"], not data["temporal_jitter"], "false"),
        ("callbacks.features", None, "features" in callbacks, "the one of conf/callbacks/default.yaml"),
    ]
    if solves:
        strategy, nodes = trainer.get("strategy", "auto"), trainer.get("num_nodes", 1)
        smoothing, one = plain["loss"]["label_smoothing"], isinstance(devices, list) and len(devices) == 1
        rules += [
            ("model.dropout", model["dropout"], model["dropout"] == 0, "0"),
            ("loss.label_smoothing", smoothing, smoothing == 0, "0"),
            ("data.sampler", data["sampler"], data["sampler"] == "shuffle", "shuffle"),
            ("callbacks.ema", "an average of weights", "ema" not in callbacks, "none"),
            ("trainer.devices", devices, devices in (1, "1") or one, "1"),
            ("trainer.strategy", strategy, strategy == "auto", "auto"),
            ("trainer.num_nodes", nodes, nodes == 1, "1"),
        ]
    for option, value, fits, remedy in rules:
        if not fits:
            got = "no such option" if value is None else str(value).lower()
            raise UserError(f"{option} to be {remedy}, for {wanted_by}", got, "Change one of the two.", option)
