"""The plan of a cross-validation, and its files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidcls.errors import UserError, check_choice, check_integer, check_seed
from vidcls.files import hash_file

PROTOCOLS = ("grouped", "random")
POOLED = ("train", "val")
RECORD = "cross_validation.json"
RESERVED = ("seed", "repeat", "fold", "resume", "test", "run_dir", "sweep.resume", "data.split.grouped")


@dataclass(frozen=True)
class Plan:
    """The options of a cross-validation, as in cross_validation.json."""

    protocol: str
    folds: int
    repeats: int
    seeds: list[int]
    splits: list[str]

    def __post_init__(self) -> None:
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_integer("folds", self.folds, minimum=2)
        check_integer("repeats", self.repeats)
        _check_distinct("seeds", self.seeds)
        _check_distinct("splits", self.splits)
        for seed in self.seeds:
            check_seed("seeds", seed)
        for split in self.splits:
            check_choice("splits", split, POOLED)

    @property
    def jobs(self) -> Iterator[tuple[int, int, int]]:
        """The repeat, fold and seed of each job."""
        for repeat in range(self.repeats):
            for fold in range(self.folds):
                yield from ((repeat, fold, seed) for seed in self.seeds)


def _check_distinct(option: str, values: Any) -> None:
    if not isinstance(values, list) or not values or len(set(map(str, values))) != len(values):
        raise UserError(f"{option} to be a list of different values", repr(values), f"Change {option}.", option)


def job_folder(folder: Path, repeat: int, fold: int, seed: int) -> Path:  # as in conf/cross_validate.yaml
    return folder / f"repeat{repeat}_fold{fold}_seed{seed}"


def folds_path(folder: Path) -> Path:
    """The videos with their groups, and a column ``repeat<r>`` with the fold of each."""
    return folder / "folds.csv"


def check_files(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises `UserError` if a table of the folds has changed, such as by losing rows."""
    for name, digest in record.get("files", {}).items():  # missing in records of earlier versions
        if not (folder / name).is_file() or hash_file(folder / name) != digest:
            remedy = "Restore it, or start again in another folder."
            raise UserError(f"{name} as it was when this was started", f"another in {folder}", remedy, "changed-folds")


def are_cross_validations(folders: Sequence[Path]) -> bool:
    """Whether the folders are of cross-validations; raises `UserError` for several if not all of them are."""
    others = [folder for folder in folders if not (folder / RECORD).is_file()]
    if others and len(folders) > 1:
        expected = "one sweep, or folders of cross_validate.py alone, in sweep"
        raise UserError(expected, f"{len(folders)}, among them {others[0]}", "Leave it out.", "several-sweeps")
    return not others
