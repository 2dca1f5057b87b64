"""Checks the options of train.py, before torch is imported and before anything is decoded."""

import os
import resource
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidcls.data.options import DataOptions
from vidcls.errors import UserError, check_choice, check_flag, check_integer, check_number, check_seed
from vidcls.metrics import LOWER_IS_BETTER
from vidcls.models.downloads import check_downloadable
from vidcls.models.network_names import check_network
from vidcls.training.logistic_options import check_fixed_clips, is_logistic
from vidcls.training.target_check import check_targets

Check = Callable[[str, Any], object]

MIN_ADDRESS_SPACE = 6 * 2**30
SCHEDULES = ("constant", "cosine", "one_cycle")
LOGGER_PACKAGES = {
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
    "NeptuneLogger": "neptune",
    "WandbLogger": "wandb",
}


def _check_deterministic(option: str, value: Any) -> None:
    if value not in (True, False, "warn", None):
        raise UserError(f"{option} to be true, false or warn", repr(value), f"Change {option}.", option)


def _check_off(option: str, value: Any) -> None:
    if value is not False:
        expected, remedy = f"{option}=false, as vidcls' samplers share out the videos themselves", "Leave it out."
        raise UserError(expected, repr(value), remedy, option)


def _check_channels(option: str, value: Any) -> None:
    numbers = value if isinstance(value, list) else []
    lowest = 0 if option == "normalise.std" else float("-inf")
    if len(numbers) != 3 or not all(isinstance(number, (int, float)) and number > lowest for number in numbers):
        kind = "positive numbers" if option == "normalise.std" else "numbers"
        raise UserError(f"{option} to be three {kind}", repr(value), f"Change {option}, or leave it out.", option)


def _check_conv_channels(option: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise UserError(f"{option} to be one or more integers", repr(value), f"Give {option}=[32,64,128].", option)
    for number in value:
        check_integer(option, number)


def _check_weights(option: str, value: Any) -> None:
    if value not in (None, "default") and not Path(value).is_file():
        remedy = f"Check the path, or give {option}=default to download those of the library."
        raise UserError(f"a file of weights in {option}", f"no such file: {value}", remedy, option)


def _check_encoder_name(option: str, value: Any) -> None:
    if value != "cnn":
        check_network(str(value))


def _check_strengths(option: str, value: Any) -> None:
    for number in value if isinstance(value, list) and value else [value]:
        check_number(option, number, open_ends=True)


def _or_null(check: Check) -> Check:
    return lambda option, value: None if value is None else check(option, value)


def _choice(*choices: str) -> Check:
    return lambda option, value: check_choice(option, value if value is None else str(value), choices)


_share: Check = partial(check_number, minimum=0.0, maximum=1.0)
_not_negative: Check = partial(check_integer, minimum=0)

CHECKS: dict[str, Check] = {
    "seed": check_seed,
    "objective": _choice(*LOWER_IS_BETTER),
    "test": check_flag,
    "figures": check_flag,
    "compile": check_flag,
    "print_config": check_flag,
    "normalise.mean": _or_null(_check_channels),
    "normalise.std": _or_null(_check_channels),
    "loss.label_smoothing": _share,
    "loss.class_weights": _choice("none", "balanced"),
    "trainer.max_epochs": check_integer,
    "trainer.accelerator": _choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.precision": _choice(
        *("16", "16-mixed", "16-true", "bf16", "bf16-mixed", "bf16-true", "32", "32-true", "64", "64-true"),
        *("transformer-engine", "transformer-engine-float16"),
    ),
    "trainer.deterministic": _check_deterministic,
    "trainer.gradient_clip_val": _or_null(check_number),
    "trainer.accumulate_grad_batches": check_integer,
    "trainer.use_distributed_sampler": _check_off,
    "refit": check_flag,
    "optim.C": _check_strengths,
    "optim.folds": partial(check_integer, minimum=2),
    "optim.max_iter": check_integer,
    "optim.lr": check_number,
    "optim.eps": check_number,
    "optim.weight_decay": check_number,
    "optim.warmup": _share,
    "optim.encoder_lr_factor": check_number,
    "optim.unfreeze_epochs": _not_negative,
    "augment.flip": _share,
    "augment.crop_scale": partial(check_number, minimum=0.01, maximum=1.0),
    "augment.jitter": _share,
    "augment.randaugment": _not_negative,
    "augment.randaugment_magnitude": partial(check_integer, minimum=0, maximum=30),
    "augment.mixup": check_number,
    "augment.cutmix": check_number,
    "callbacks.ema.decay": _share,
    "callbacks.early_stopping.patience": _not_negative,
}
"""The check of each option, if it is in a configuration."""

MODEL_CHECKS: dict[str, Check] = {
    "model.name": _choice("i3d", "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t"),
    "model.dropout": _share,
    "model.standardise": check_flag,
    "model.motion": _choice(
        "rgb", "difference", "multiscale_difference", "feature_difference", "early_fusion", "late_fusion"
    ),
    "model.weights": _check_weights,
    "model.norm_eval": check_flag,
    "model.sizes": partial(check_integer, maximum=4),
    "model.motion_crop": _or_null(partial(check_integer, minimum=32)),
    "model.lstm.hidden_size": check_integer,
    "model.encoder.name": _check_encoder_name,
    "model.encoder.channels": _check_conv_channels,
    "model.encoder.weights": _check_weights,
    "model.encoder.norm_eval": check_flag,
    "model.encoder.temporal_shift": check_flag,
    "model.head.name": _choice("lstm", "gru", "pool", "transformer"),
    "model.head.hidden_size": check_integer,
    "model.head.bidirectional": check_flag,
    "model.head.num_layers": check_integer,
    "model.head.num_heads": check_integer,
    "model.head.pooling": _choice("last", "mean", "max", "attention", "statistics"),
}
"""The same for the models of this package; a custom model may use these names for anything."""


def check_train_options(cfg: DictConfig, reads_source: bool = True) -> None:
    """Checks ranges, choices, paths and class names in train.py's configuration; raises `UserError`.

    Of several processes, only the first ``reads_source``.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    own_model = not str(plain["model"]["_target_"]).startswith("vidcls.")
    resumes = plain["resume"] is not None
    for option, check in (CHECKS | ({} if own_model else MODEL_CHECKS)).items():
        found, value = _find(plain, option)
        if found and not (resumes and check is _check_weights):  # a resumed run has them in its checkpoint
            check(option, value)
    if missing := {"best", "last", "history", "timing"} - set(plain.get("callbacks") or {}):
        expected, remedy = "the callbacks best, last, history and timing", "Add them: see conf/callbacks/default.yaml."
        raise UserError(expected, f"no {', '.join(sorted(missing))}", remedy, "callbacks")
    folder = os.path.join(str(plain["run_dir"]), "checkpoints")
    for name in ("best", "last"):  # elsewhere they would not be found, and several would overwrite each other
        kept = {"save_top_k": 1, "dirpath": None, "filename": None} | plain["callbacks"][name]
        wanted = {"save_top_k": 1, "dirpath": folder, "filename": name}
        if wrong := [f"{key}={kept[key]}" for key in wanted if kept[key] != wanted[key]]:
            expected = f"callbacks.{name} to keep one checkpoint, {name}.ckpt, in the folder of the run"
            remedy = "Leave that as it is; add a callback of another name."
            raise UserError(expected, ", ".join(wrong), remedy, f"callbacks.{name}")
    _check_monitors(plain)
    if "ema" in plain["callbacks"] and (half := str(plain["trainer"]["precision"])) in ("16-true", "bf16-true"):
        expected = "trainer.precision=bf16-mixed or 32-true, for callbacks=ema: half precision would round steps away"
        raise UserError(expected, half, "Change one of them.", "trainer.precision")
    solves = is_logistic(plain["optim"])
    if not solves:
        _check_schedule(plain["optim"])
        if plain.get("refit"):
            got, remedy = str(plain["optim"].get("_target_")), "Leave refit out, or choose optim=logistic."
            raise UserError("optim=logistic, for refit=true", got, remedy, "refit")
    _check_loggers(plain.get("logger") or {})
    data = DataOptions.from_config(plain["data"])
    check_targets(plain)
    if not own_model:
        _check_model_fits(plain["model"], data)
    if solves or (plain["model"].get("standardise") is True and not own_model):
        check_fixed_clips(plain, "optim=logistic" if solves else "model.standardise=true", solves)
    if not resumes:
        if (data.sampler, plain["loss"]["class_weights"]) == ("balanced", "balanced"):
            expected = "loss.class_weights=none, for data.sampler=balanced: both together make rare classes dominate"
            raise UserError(expected, "balanced", "Leave one of them out.", "loss.class_weights")
        if reads_source:
            _check_source(data)
        if reads_source and data.decisions:
            from vidcls.data.decisions import read_decisions  # with pandas, which other runs load while they decode

            read_decisions(data.decisions)
        if not own_model:
            _check_downloads(plain["model"])


def check_run_values(plain: dict[str, Any]) -> None:
    """Checks the options of a finished run that are still used; raises `UserError`, LookupError or TypeError."""
    for option in ("compile", "trainer.accelerator", "trainer.precision", "trainer.deterministic"):
        found, value = _find(plain, option)
        if not found:
            raise LookupError(f"{option} is missing")
        CHECKS[option](option, value)
    DataOptions.from_config(plain["data"])


def check_gpu(cfg: DictConfig) -> None:
    """Raises `UserError` if the trainer needs a GPU and there is none, before videos are decoded for hours."""
    accelerator, mixed = cfg.trainer.accelerator, str(cfg.trainer.precision) in ("16", "16-mixed")
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and mixed):
        import torch  # takes seconds; other runs import it while they decode

        if accelerator == "auto":
            accelerator = "cpu" if torch.accelerator.current_accelerator(check_available=True) is None else "gpu"
        elif not torch.cuda.is_available():
            raise UserError(
                "a CUDA GPU, as the trainer asks", "none that torch can see", "Leave trainer=gpu out.", "no-gpu"
            )
    if accelerator == "cpu" and mixed:  # Lightning would compute in bf16 instead
        expected, got = "a GPU, for trainer.precision=16-mixed", "a CPU"
        raise UserError(expected, got, "Give trainer.precision=bf16-mixed, or leave it out.", "trainer.precision")


def check_address_space() -> None:
    """Raises `UserError` for a limit too low to load torch and SciPy: OpenBLAS may hang rather than fail."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        expected, remedy = "6 GB of address space or more", "Lift the limit: ulimit -v unlimited."
        raise UserError(expected, f"ulimit -v {limit // 1024}", remedy, "address-space")


def _find(plain: Any, option: str) -> tuple[bool, Any]:
    for key in option.split("."):
        if not isinstance(plain, dict) or key not in plain:
            return False, None
        plain = plain[key]
    return True, plain


def _check_schedule(optim: dict[str, Any]) -> None:
    schedule, warmup, unfreeze_epochs = (optim.get(name) for name in ("schedule", "warmup", "unfreeze_epochs"))
    if isinstance(schedule, dict):
        if warmup or unfreeze_epochs:
            expected = "optim.warmup=0 and optim.unfreeze_epochs=0, for a scheduler of your own"
            remedy = "Set them to 0, or use optim.schedule=cosine."
            raise UserError(expected, f"{warmup} and {unfreeze_epochs}", remedy, "optim.schedule")
        return
    check_choice("optim.schedule", schedule, SCHEDULES)
    if schedule == "one_cycle" and not 0 < (warmup or 0) < 1:
        expected = "optim.warmup between 0 and 1, for optim.schedule=one_cycle"
        raise UserError(expected, str(warmup), "Give optim.warmup=0.3.", "optim.warmup")


def _check_monitors(plain: dict[str, Any]) -> None:
    """Raises `UserError` for a callback or schedule whose mode would take the worst value of a metric for the best."""
    watching = {f"callbacks.{name}": options for name, options in plain["callbacks"].items()}
    if str(_find(plain, "optim.schedule._target_")[1]).endswith(".ReduceLROnPlateau"):
        watching["optim.schedule"] = {"monitor": "val/loss"} | plain["optim"]["schedule"]
    for option, options in watching.items():
        monitor, mode = str((options or {}).get("monitor")), (options or {}).get("mode", "min")
        group, _, name = monitor.partition("/")
        lower = LOWER_IS_BETTER.get(name) if group in ("train", "val") else None
        lower = False if group in ("val_precision", "val_recall", "val_f1") else lower
        best = mode if lower is None else "min" if lower else "max"
        if mode != best:
            expected, got = f"{option}.mode={best}, for {monitor}", f"{mode}, which selects the worst value"
            raise UserError(expected, got, f"Give {option}.mode={best}.", f"{option}.mode")


def _check_loggers(loggers: dict[str, Any]) -> None:
    for logger in [loggers] if "_target_" in loggers else loggers.values():
        package = LOGGER_PACKAGES.get(str(logger["_target_"]).rpartition(".")[2])
        if package and find_spec(package) is None:
            expected = f"the package {package}, for {logger['_target_']}"
            remedy = f"Install it (pip install {package}), or choose another logger."
            raise UserError(expected, "no such package installed", remedy, "missing-package")


def _check_model_fits(model: dict[str, Any], data: DataOptions) -> None:
    channels = _find(model, "encoder.channels")[1] or []
    needed = [("resolution", 2 ** len(channels), f"{len(channels)} poolings")]
    if model.get("name") == "s3d":
        # s3d needs 5 frames. But for fewer than 8, oneDNN, which torch uses on CPUs, computes a wrong gradient for its
        # kernels of 7 frames, or writes past the end of its memory (seen in torch 2.15).
        needed += [("resolution", 17, "model.name=s3d"), ("num_frames", 8, "model.name=s3d")]
    if channels and model.get("sizes", 1) > 1:  # its number of features is that of pixels
        raise UserError("model.sizes=1, for model/encoder=cnn", str(model["sizes"]), "Leave it out.", "model.sizes")
    if model.get("motion", "rgb") != "rgb":
        least = 5 if model["motion"] == "multiscale_difference" else 2
        needed.append(("num_frames", least, f"model.motion={model['motion']}"))
    for name, least, reason in needed:
        if (value := getattr(data, name)) < least:
            remedy = f"Give data.{name}={least} or more."
            raise UserError(f"data.{name} >= {least} for {reason}", str(value), remedy, f"data.{name}")
    head = model.get("head", {})
    if "num_heads" in head and head["hidden_size"] % head["num_heads"]:
        expected = f"model.head.num_heads to divide model.head.hidden_size={head['hidden_size']}"
        raise UserError(expected, str(head["num_heads"]), "Change one of them.", "model.head.num_heads")
    for path, options in (("model", model), ("model.encoder", model.get("encoder", {}))):
        if "weights" in options and options["weights"] is None:
            for option, default in {"trainable_from": "all", "norm_eval": False}.items():
                if options.get(option, default) != default:
                    given = str(options[option]).lower()
                    raise UserError(
                        f"{path}.weights, as {path}.{option}={given} keeps part of the network as it is",
                        "null: random values",
                        f"Give {path}.weights=default or a path, or {path}.{option}={str(default).lower()}.",
                        f"{path}.weights",
                    )


def _check_downloads(model: dict[str, Any]) -> None:
    for path, options in (("model", model), ("model.encoder", model.get("encoder") or {})):
        if options.get("weights") == "default":
            check_downloadable(str(options["name"]), f"{path}.weights")


def _check_source(data: DataOptions) -> None:
    from vidcls.data.archive import is_archive
    from vidcls.data.sources import list_videos

    if data.demo is None and not is_archive(data.source):  # these are drawn or extracted first
        list_videos(data, data.classes)
