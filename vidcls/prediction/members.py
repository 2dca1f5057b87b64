"""The members of an ensemble and its identity, known before torch is imported."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from vidcls.data.manifest import read_manifest, usable_rows
from vidcls.data.options import class_order
from vidcls.errors import UserError
from vidcls.files import hash_file
from vidcls.moderation.policy import load_policy
from vidcls.training.run_config import read_config
from vidcls.training.run_folder import best_checkpoint, check_finished, manifest_path, policy_path


@dataclass(frozen=True)
class Member:
    """What is known of a finished run, or of an ensemble of several, before torch is imported."""

    folder: Path  # for results
    identity: str  # 12 hex digits of a hash of all that the probabilities depend on; of a run: of its best.ckpt
    config: DictConfig  # with paths into the current folder
    classes: list[str]  # the K names, in the order of the probabilities
    manifest: pd.DataFrame  # its videos
    temperature: float | None  # with which an ensemble calibrates it: that of its policy.json, if it has one


def read_members(folders: Sequence[Path]) -> list[Member]:
    """The runs in ``folders``, in an order that does not depend on the order of ``folders``.

    Raises:
        UserError: one is not a finished run, one is given twice, or their classes differ.
    """
    calibrated = len(folders) > 1
    members = sorted((_read_member(folder, calibrated) for folder in folders), key=lambda member: member.identity)
    first = members[0]
    for before, member in pairwise(members):
        if member.identity == before.identity:
            got = f"{before.folder} and {member.folder} with the same weights"
            raise UserError("different runs in run=[...]", got, "Name each run once.", "ensemble-twice")
        if member.classes != first.classes:
            raise UserError(
                f"runs of the same classes, in the same order, in run=[...]: {', '.join(first.classes)}",
                f"{', '.join(member.classes)} in {member.folder}",
                "Leave that run out, or train it with the same data.classes.",
                "ensemble-classes",
            )
    return members


def _read_member(folder: Path, calibrated: bool) -> Member:
    folder = check_finished(folder)
    config, manifest = read_config(folder), read_manifest(manifest_path(folder))
    identity = hash_file(best_checkpoint(folder))[:12]
    classes, policy = class_order(list(manifest["label"]), config.data.classes), policy_path(folder)
    temperature = load_policy(policy, classes, identity).temperature if calibrated and policy.exists() else None
    return Member(folder, identity, config, classes, manifest, temperature)


def ensemble_identity(members: Sequence[Member]) -> str:
    """12 hex digits of a hash of the members' weights and temperatures."""
    text = " ".join(f"{member.identity}:{member.temperature}" for member in members)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def results_folder(members: Sequence[Member]) -> Path:
    """The folder for results and policy: a single run's own, or a subfolder of the first member's."""
    if len(members) == 1:
        return members[0].folder
    return members[0].folder / "ensembles" / ensemble_identity(members)


def check_splits(members: Sequence[Member], splits: Sequence[str]) -> None:
    """Raises `UserError` if ``splits`` differ between members: some may have been trained on what others test on."""
    keys = ["sha256", "label"]
    if "val" in splits and len({bool(member.config.get("refit")) for member in members}) > 1:
        remedy = "Train all with the same refit, or give split=test."
        raise UserError("runs that are all fitted to val, or none", "both in run=[...]", remedy, "ensemble-splits")
    for split in splits:
        held = [set(usable_rows(m.manifest, split)[keys].itertuples(index=False, name=None)) for m in members]
        for member, videos in zip(members, held, strict=True):
            if videos != held[0]:
                raise UserError(
                    f"runs with the same videos in their {split} splits",
                    f"{len(held[0] ^ videos)} that differ between {members[0].folder} and {member.folder}",
                    "Evaluate on videos that none of them was trained on: data.source=PATH.",
                    "ensemble-splits",
                )
