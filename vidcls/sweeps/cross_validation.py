"""A cross-validation is a sweep over repeats, folds and seeds; the folds are drawn once, before its jobs start.

Each job is a run of train.py on a .csv whose test split is the fold. As in any run on a source without a val split, the
epoch is chosen on one that is drawn from the rest.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vidcls.cli import check_missing, check_overrides
from vidcls.data.options import DataOptions, class_order
from vidcls.errors import UserError
from vidcls.files import csv_bytes, hash_file, write_atomically, write_json
from vidcls.sweeps.fold_plan import RECORD, RESERVED, Plan, check_files, folds_path
from vidcls.sweeps.jobs import SweepCallback, callback_errors_exit, end_on_ctrl_c, parse_overrides, prepare_sweep
from vidcls.training.options import check_address_space, check_train_options
from vidcls.training.run_folder import PREVIOUS_CHECKPOINT, last_checkpoint


def drop_last_checkpoints(job: Path) -> None:
    """Deletes all checkpoints of a finished job except best.ckpt: there may be a hundred jobs, and none is resumed."""
    if (job / "metrics.json").is_file():
        for path in (last_checkpoint(job), last_checkpoint(job).with_name(PREVIOUS_CHECKPOINT)):
            path.unlink(missing_ok=True)


class CrossValidationCallback(SweepCallback):
    """Draws the folds before the jobs are composed, and writes the results after the last one."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with callback_errors_exit():
            check_overrides(config, config.hydra)
            prepare_cross_validation(config)
        end_on_ctrl_c(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        with callback_errors_exit():
            from vidcls.data.preparation import frame_store  # late, as these need pandas
            from vidcls.sweeps.fold_results import write_results

            options: Any = OmegaConf.to_container(config.data, resolve=True)
            store = frame_store(DataOptions.from_config(options))
            write_results(Path(config.hydra.sweep.dir).absolute(), store)


def prepare_cross_validation(config: DictConfig) -> None:
    """Draws the folds, or reads them where the folder has some, and adds the overrides of the jobs.

    Raises:
        UserError: an option cannot be used, the folder is of another command, or the videos cannot be divided.
    """
    given = parse_overrides(list(config.hydra.overrides.task))
    swept = [option for option, override in given.items() if override.is_sweep_override()]
    if reserved := [*swept, *(option for option in RESERVED if option in given)]:
        raise UserError(
            f"a cross-validation of one configuration, without {reserved[0]}, which it sets itself",
            str(given[reserved[0]].input_line),
            "Leave it out; seeds=[0,1] names seeds, protocol=random ungroups, and output=DIR continues.",
            "reserved-override",
        )
    cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    check_missing(cfg)
    with open_dict(cfg):
        cfg.run_dir = str(Path(config.hydra.sweep.dir).absolute())
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plan = Plan(**{name: plain[name] for name in ("protocol", "folds", "repeats", "seeds", "splits")})
    check_address_space()
    check_train_options(cfg)
    options = DataOptions.from_config(plain["data"])
    if not options.split.val_fraction:
        expected = "data.split.val_fraction > 0, as each fold needs a val split of its own to choose the epoch on"
        raise UserError(expected, "0", "Leave it out.", "data.split.val_fraction")
    folder = Path(cfg.run_dir)
    record = folder / "sweep.json"
    if started := record.is_file():
        with open_dict(config):
            config.sweep.resume = str(folder)
    config.hydra.overrides.task += [
        f"repeat={','.join(map(str, range(plan.repeats)))}",
        f"fold={','.join(map(str, range(plan.folds)))}",
        f"seed={','.join(map(str, plan.seeds))}",
    ]
    prepare_sweep(config)
    source = "${hydra:sweep.dir}/splits/repeat${repeat}_fold${fold}.csv"
    grouped = str(plan.protocol == "grouped").lower()
    config.hydra.overrides.task += ["test=true", f"data.source='{source}'", "data.demo=null"]
    config.hydra.overrides.task += [f"data.split.grouped={grouped}"]
    try:
        write_folds(folder, plan, options)
    except UserError:
        if not started:  # the corrected command may have the folder
            record.unlink()
        raise


def write_folds(folder: Path, plan: Plan, options: DataOptions) -> None:
    """Decodes the videos and writes folds.csv, a .csv per fold for train.py, and finally cross_validation.json.

    If that exists, its folds are kept, and only what the store has lost is decoded.

    Raises:
        UserError: the videos cannot be divided, or are not those of the existing folds.
    """
    import pandas as pd
    from rich.console import Console

    from vidcls.data.preparation import pool_videos
    from vidcls.data.splits import assign_folds, assign_splits, group_videos

    console, grouped = Console(), plan.protocol == "grouped"
    decided = [hash_file(Path(path)) for path in options.decisions]
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text())
        check_files(folder, record)
        if record.get("decisions", []) != decided:
            remedy = "Restore them, or start again in another folder."
            raise UserError("data.decisions as they were when this was started", "others", remedy, "changed-decisions")
        pool_videos(options, plan.splits, console, pd.read_csv(folds_path(folder), dtype=str, keep_default_na=False))
        return
    pooled, locked = pool_videos(options, plan.splits, console)
    pooled["group"] = group_videos(pooled, creators=grouped)
    # Videos without a label are never held out: train.py may label them by data.decisions.
    videos, unlabelled = pooled[pooled["label"] != ""], pooled[pooled["label"] == ""]
    labels, groups = list(videos["label"]), list(videos["group"])
    table = videos[["path", "label", "creator", "sha256", "file", "group"]].copy()
    tables: dict[str, bytes] = {}
    for repeat in range(plan.repeats):
        table[f"repeat{repeat}"] = folds = assign_folds(labels, groups, plan.folds, repeat)
        for fold in range(plan.folds):
            given = ["test" if number == fold else "train" for number in folds]
            fraction = options.split.val_fraction
            splits = assign_splits(labels, groups, given, val_fraction=fraction, test_fraction=0, seed=repeat)
            held_out = {group for group, split in zip(groups, splits, strict=True) if split != "train"}
            joining = unlabelled[~unlabelled["group"].isin(held_out)].assign(split="train")
            rows = pd.concat([videos.assign(split=splits), joining])[["file", "label", "creator", "split"]]
            if not grouped:
                rows["creator"] = ""
            rows = rows.rename(columns={"file": "path"})
            tables[f"splits/repeat{repeat}_fold{fold}.csv"] = csv_bytes(rows)
    tables[folds_path(folder).name] = csv_bytes(table)
    for name, content in tables.items():
        write_atomically(folder / name, content)
    record = asdict(plan) | {
        "source": options.source,
        "classes": class_order(labels, options.classes),
        "videos": len(videos),
        "groups": len(set(groups)),
        "creators": len(set(videos["creator"]) - {""}),
        "locked_videos": locked,
        "decisions": decided,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in tables.items()},
    }
    write_json(folder / RECORD, record)
    left_out = f"; {locked} videos of other splits stay locked" if locked else ""
    console.print(
        f"{len(videos)} videos of {record['creators']} creators: {plan.folds} {plan.protocol} folds, "
        f"{plan.repeats} repeats, seeds {', '.join(map(str, plan.seeds))}{left_out}",
        soft_wrap=True,
    )
