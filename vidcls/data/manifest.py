"""The table of a run's videos, manifest.csv: its columns, reading and writing, and counts per split."""

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidcls.data.decoding.result import LOST, USABLE
from vidcls.data.options import SPLITS
from vidcls.errors import UserError, one_line, printable
from vidcls.files import csv_bytes, write_atomically

INGESTED = ["sha256", "status", "reason", "decoder", "seconds", "coverage"]
MANIFEST_COLUMNS = ["path", "label", "split", "creator", *INGESTED, "label_source", "cluster"]
LATER_COLUMNS = {"label_source": "folder", "cluster": ""}  # missing in manifests of earlier versions
MANIFEST_PATTERNS = {
    "split": "train|val|test|",
    "sha256": "[0-9a-f]{64}|",  # empty: of a file that could not be read
    "status": "ok|partial|undecodable|unfetchable|dropped",
    "seconds": r"\d+(\.\d+)?(e[+-]?\d+)?",
    "coverage": r"[01](\.\d+)?|\d(\.\d+)?e-\d+",
    "label_source": "folder|decisions",
}


def digest_path(path: Path) -> Path:
    """The digest of a manifest.csv, in the format of `sha256sum`."""
    return path.with_name(f"{path.name}.sha256")


def write_manifest(path: Path, manifest: pd.DataFrame) -> None:
    """Writes a manifest.csv and its digest, without which a table that has lost rows would look complete."""
    content = csv_bytes(manifest[MANIFEST_COLUMNS])
    write_atomically(digest_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    write_atomically(path, content)


def read_manifest(path: Path) -> pd.DataFrame:
    """Reads a manifest.csv, all texts as str; raises `UserError` if it is damaged. Old runs have no digest of it."""
    texts = dict.fromkeys(set(MANIFEST_COLUMNS) - {"seconds", "coverage"}, str)
    remedy, digest = "Restore it, or start a new run.", digest_path(path)
    try:
        content = path.read_bytes()
        if digest.exists() and digest.read_text(errors="replace")[:64] != hashlib.sha256(content).hexdigest():
            remedy = f"Restore it; if the change is meant, remove {digest.name}."
            raise ValueError(f"it has changed since it was written, by {digest.name}")
        manifest = pd.read_csv(BytesIO(content), keep_default_na=False, dtype=texts)
        manifest = manifest.assign(**{name: text for name, text in LATER_COLUMNS.items() if name not in manifest})
        if not set(MANIFEST_COLUMNS) <= set(manifest.columns) or not content.endswith(b"\n"):
            raise ValueError("it has other columns, or its end is missing")
        for name, pattern in MANIFEST_PATTERNS.items():
            if not (fits := manifest[name].astype(str).str.fullmatch(pattern)).all():
                raise ValueError(f"{name} is {manifest[name][~fits].iloc[0]!r}")
        if manifest["path"].duplicated().any():
            raise ValueError("a path is in it twice")
    except (OSError, ValueError) as error:
        raise UserError("the manifest.csv of a run", f"{path}: {one_line(error)}", remedy, "bad-manifest") from error
    return manifest


def usable_rows(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of a split that have frames, with a new index from 0."""
    usable = manifest["status"].isin(USABLE) & (manifest["split"] == split)
    return manifest[usable].reset_index(drop=True)


def count_training_videos(
    manifest: pd.DataFrame, classes: Sequence[str], option: str, splits: Sequence[str] = ("train",)
) -> list[int]:
    """The training videos of each class; raises `UserError` if a class has none, for an ``option`` that balances."""
    labels = pd.concat([usable_rows(manifest, split)["label"] for split in splits])
    counts = [int((labels == name).sum()) for name in classes]
    if 0 in counts:
        raise UserError(
            f"training videos of every class, for {option}=balanced",
            f"none of {classes[counts.index(0)]}",
            f"Add some, or change {option}.",
            "class-without-training-videos",
        )
    return counts


def report_bad(manifest: pd.DataFrame, console: Console, limit: int = 20) -> None:
    """Prints the videos that are partial or undecodable, with their reasons."""
    bad = manifest[manifest["status"].isin(["partial", *LOST])]
    for row in bad.head(limit).itertuples():
        text = Text(row.status, "yellow") + Text(printable(f" {row.path}: {row.reason}"))
        console.print(text, highlight=False, soft_wrap=True)
    if len(bad) > limit:
        console.print(f"... and {len(bad) - limit} more: see the column status of manifest.csv")


def print_splits(manifest: pd.DataFrame, classes: Sequence[str], console: Console) -> None:
    """Prints the number of usable videos by class and split, and of those without frames."""
    table = Table(title="Videos", title_justify="left")
    table.add_column("class")
    usable = {split: usable_rows(manifest, split) for split in SPLITS}
    labels = {split: rows["label"] for split, rows in usable.items()}
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name in classes:
        table.add_row(Text(name), *(str((labels[split] == name).sum()) for split in SPLITS))
    console.print(table)
    for split in [split for split in SPLITS if len(labels[split])]:
        if missing := [name for name in classes if not (labels[split] == name).any()]:
            means = "the network cannot learn them" if split == "train" else "its metrics say nothing about them"
            text = f"No {split} video of {', '.join(missing)}: {means}"
            console.print(Text(text, "yellow"), soft_wrap=True)
    for split in SPLITS:
        if copies := usable[split]["sha256"].duplicated().sum():
            text = f"{copies} {split} videos have the same bytes as another one there, and count like any other"
            console.print(Text(text, "yellow"), soft_wrap=True)
    for status, what in {"undecodable": "decoded", "unfetchable": "fetched"}.items():
        if lost := (manifest["status"] == status).sum():
            console.print(f"[yellow]{lost} videos could not be {what} and are left out[/yellow]")
