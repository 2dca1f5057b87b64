"""From ``data.*`` settings to loaders: lists, decodes, splits and checks the videos, then serves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader

from vidcls.data.dataset import FeatureBatch, VideoBatch, VideoDataset, VideoSampler
from vidcls.data.demo import draw_demo
from vidcls.data.features import FeatureDataset, FeatureStore
from vidcls.data.ingest import MANIFEST_COLUMNS, Cost, DecodeLimits, ingest, report_bad
from vidcls.data.sampling import Clips, stored_frames
from vidcls.data.sources import class_order, list_videos
from vidcls.data.splits import assign_splits, drop_leaks, find_leaks, group_videos
from vidcls.data.store import Store
from vidcls.errors import UserError, check_choice, check_integer, check_number

SPLITS = ("train", "val", "test")


class VideoDataModule(L.LightningDataModule):
    """The videos of one source.

    Call `prepare` once (it does the slow work and fills ``manifest``, ``classes`` and ``cost``), then hand it
    to a trainer. Every knob is described beside its default in ``conf/data/``.

    Raises:
        UserError: a setting is out of range; says which.
    """

    def __init__(
        self,
        source: str,
        cache_dir: str,
        seed: int,
        num_frames: int = 20,
        resolution: int = 64,
        batch_size: int = 4,
        sampling: str = "uniform",
        clip_seconds: float | int | None = None,
        num_clips: int = 1,
        temporal_jitter: bool = False,
        sampler: str = "shuffle",
        classes: Sequence[str] | None = None,
        creator_pattern: str = r"(?P<creator>.+)_[^_]+",
        leakage: str = "warn",
        on_bad: str = "skip",
        split: dict[str, Any] | None = None,
        store: dict[str, Any] | None = None,
        decode: dict[str, Any] | None = None,
        zip: dict[str, Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        demo: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.source = Path(source)
        self.cache_dir = Path(cache_dir)
        self.seed = check_integer("seed", seed, minimum=0)
        self.num_frames = check_integer("data.num_frames", num_frames)
        self.resolution = check_integer("data.resolution", resolution)
        self.batch_size = check_integer("data.batch_size", batch_size)
        self.temporal_jitter = temporal_jitter
        self.sampler = check_choice("data.sampler", sampler, ("shuffle", "balanced"))
        self.requested_classes = classes if classes is None or isinstance(classes, str) else [str(c) for c in classes]
        self.creator_pattern = creator_pattern
        self.leakage = check_choice("data.leakage", leakage, ("warn", "error", "drop"))
        self.on_bad = check_choice("data.on_bad", on_bad, ("skip", "error"))
        self.split = {"val_fraction": 0.15, "test_fraction": 0.15, "grouped": True} | dict(split or {})
        for name in ("val_fraction", "test_fraction"):
            check_number(f"data.split.{name}", self.split[name], 0.0, 0.9)
        self.limits = DecodeLimits(**(decode or {}))
        self.zip = {"max_gigabytes": 100.0, "max_ratio": 100.0} | dict(zip or {})
        self.num_workers = check_integer("data.num_workers", num_workers, minimum=0)
        self.pin_memory = pin_memory
        self.demo = demo
        self.store = self._choose_store(sampling, Clips(clip_seconds, num_clips), **(store or {}))
        if temporal_jitter and self.store.num_frames == num_frames:
            raise UserError(
                "more stored frames than used ones, for data.temporal_jitter",
                f"{num_frames} of each",
                f"Give data.store.num_frames={2 * num_frames} or another multiple.",
            )
        self.classes: list[str] = []
        self.manifest = pd.DataFrame(columns=MANIFEST_COLUMNS)
        self.cost = Cost()
        self.features: FeatureStore | None = None

    def _choose_store(
        self, sampling: str, clips: Clips, num_frames: int | None = None, resolution: int | None = None
    ) -> Store:
        frames = stored_frames(self.num_frames, num_frames, sampling)
        pixels = check_integer("data.store.resolution", self.resolution if resolution is None else resolution)
        for wanted, held, name in ((frames, num_frames, "num_frames"), (self.resolution, resolution, "resolution")):
            if held is not None and held < wanted:
                print(f"data.store.{name}={held} is less than this run asks for: storing {wanted} instead")
        return Store(self.cache_dir / "store", frames, max(pixels, self.resolution), sampling, clips)

    def prepare(self, console: Console) -> None:
        """Lists, decodes and splits the videos and reports what is wrong with them.

        Raises:
            UserError: the source holds nothing to train on, or what ``data.leakage`` or ``data.on_bad`` forbid.
        """
        if self.demo is not None:
            draw_demo(self.source, **self.demo)
        manifest = self._read(self._list(self.requested_classes, console), console)
        self.classes = class_order(list(manifest["label"]), self.requested_classes)
        manifest["split"] = assign_splits(
            list(manifest["label"]),
            group_videos(list(manifest["creator"]), list(manifest["sha256"])),
            list(manifest["split"]),
            val_fraction=self.split["val_fraction"],
            test_fraction=self.split["test_fraction"],
            seed=self.seed,
            grouped=self.split["grouped"],
        )
        self.manifest = self._check_leaks(manifest, console)
        self._report_splits(console)
        for name in ("train", "val"):
            if self.rows(name).empty:
                raise UserError(
                    f"at least one decodable video in the {name} split",
                    f"none of {len(self.manifest)} videos",
                    "Add videos, or see the statuses and reasons above.",
                )
        if self.sampler == "balanced":
            self._training_counts("data.sampler=balanced", "data.sampler=shuffle")

    def prepare_foreign(self, split: str, trained_on: pd.DataFrame, console: Console) -> None:
        """Lists and decodes other data of the classes ``data.classes`` to evaluate a trained network on.

        Where the source has split folders (or a csv a split column) those of ``split`` are used; else all are.

        Args:
            split: under which the videos are found afterwards.
            trained_on: the manifest of the network's own videos. What it shares with these is reported as leakage.
            console: for what is wrong with them.

        Raises:
            UserError: unknown classes, none of the wanted split, no video that can be decoded, or what ``data.on_bad``
                or ``data.leakage`` forbid.
        """
        assert self.requested_classes is not None
        self.classes = list(self.requested_classes)
        listing = self._list(self.classes, console, refuse_others=True)
        if (listing["split"] != "").any():
            listing = listing[listing["split"] == split]
            if listing.empty:
                raise UserError(f"a {split} folder in {self.source}", "splits without it", "Give another split=.")
        self.manifest = self._read(listing, console).assign(split=split)
        seen = trained_on[trained_on["split"].isin(["train", "val"])].assign(split="trained on")
        leaks = find_leaks(pd.concat([seen, self.manifest.assign(split="evaluated")], ignore_index=True))
        leaks = leaks[leaks["splits"].str.contains("evaluated")]
        if not leaks.empty:
            self._show_leaks(leaks, console)
        if self.leakage == "drop":  # from what is evaluated: the network has been trained on the rest already
            shared = [self.manifest[key].isin(set(seen[key]) - {""}) for key in ("sha256", "creator")]
            self.manifest.loc[shared[0] | shared[1], ["status", "reason"]] = [
                "dropped",
                "the network was trained on it",
            ]
            console.print(f"Dropped {(self.manifest['status'] == 'dropped').sum()} leaking videos")
        if self.rows(split).empty:
            raise UserError(
                "at least one video to evaluate", f"none of {len(listing)}", "See the statuses and reasons above."
            )

    def restore(self, manifest: pd.DataFrame, splits: Sequence[str], console: Console) -> None:
        """Takes a run's manifest, and decodes again those videos of ``splits`` that the store has lost.

        Raises:
            UserError: such a video is not in the source any more, or is another one.
        """
        self.adopt(manifest)
        rows = pd.concat([self.rows(split) for split in splits])
        lost = rows[[self.store.find(sha256) is None for sha256 in rows["sha256"]]]
        if lost.empty:
            return
        console.print(f"{len(lost)} of {len(rows)} videos are not in {self.store.folder}: decoding them again")
        if self.demo is not None:
            draw_demo(self.source, **self.demo)
        listing = self._list(self.classes, console)
        found, _ = ingest(
            listing[listing["path"].isin(lost["path"])], self.store, self.limits, self.cache_dir / "hashes.sqlite"
        )
        now = dict(zip(found["path"], found["sha256"], strict=True))
        changed = [row.path for row in lost.itertuples() if now.get(row.path) != row.sha256]
        if changed:
            raise UserError(
                f"the videos of manifest.csv in {self.source}",
                f"{len(changed)} that are gone or have changed, the first {changed[0]}",
                "Bring them back, or name other data with data.source=PATH.",
            )

    def adopt(self, manifest: pd.DataFrame) -> None:
        """Takes a manifest that another process has prepared."""
        self.manifest = manifest
        self.classes = class_order(list(manifest["label"]), self.requested_classes)

    def _list(self, classes: Sequence[str] | None, console: Console, refuse_others: bool = False) -> pd.DataFrame:
        listing = list_videos(
            self.source,
            classes=classes,
            creator_pattern=self.creator_pattern,
            cache_dir=self.cache_dir,
            refuse_others=refuse_others,
            **self.zip,
        )
        ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(listing.ignored.items()))
        found = f"Found {len(listing.videos)} videos in {self.source}"
        console.print(f"{found} (ignored {ignored})" if ignored else found, markup=False, soft_wrap=True)
        return listing.videos

    def _read(self, listing: pd.DataFrame, console: Console) -> pd.DataFrame:
        """Decodes a listing into the store; gives the manifest."""
        manifest, self.cost = ingest(listing, self.store, self.limits, self.cache_dir / "hashes.sqlite")
        report_bad(manifest, console)
        if self.on_bad == "error" and (manifest["status"] != "ok").any():
            row = manifest[manifest["status"] != "ok"].iloc[0]
            raise UserError(
                "every video to be decoded whole, as data.on_bad=error asks",
                f"{(manifest['status'] != 'ok').sum()} that are not, the first {row.path}: {row.reason}",
                "Mend or remove them, or give data.on_bad=skip.",
            )
        return manifest

    def balanced_class_weights(self) -> list[float]:
        """N / (K n_k) for each class k of the training split, so that each class weighs alike.

        Raises:
            UserError: a class has no training videos.
        """
        counts = self._training_counts("loss.class_weights=balanced", "loss.class_weights=none")
        return [sum(counts) / (len(counts) * count) for count in counts]

    def _training_counts(self, asked: str, instead: str) -> list[int]:
        """How many training videos each class has; refuses what is asked for where it is none."""
        counts = [int((self.rows("train")["label"] == name).sum()) for name in self.classes]
        if 0 in counts:
            raise UserError(
                f"training videos of every class, for {asked}",
                f"none of {self.classes[counts.index(0)]}",
                f"Add some, or give {instead}.",
            )
        return counts

    def _check_leaks(self, manifest: pd.DataFrame, console: Console) -> pd.DataFrame:
        leaks = find_leaks(manifest)
        if leaks.empty:
            return manifest
        self._show_leaks(leaks, console)
        if self.leakage == "warn":
            return manifest
        dropped = drop_leaks(manifest)
        console.print(f"Dropped {(dropped['status'] == 'dropped').sum()} leaking videos")
        return dropped

    def _show_leaks(self, leaks: pd.DataFrame, console: Console) -> None:
        table = Table(title=f"Leakage between splits (data.leakage={self.leakage})", title_justify="left")
        for column in leaks.columns:
            table.add_column(column)
        for leak in leaks.head(20).itertuples(index=False):
            table.add_row(*(Text(str(value)[:60]) for value in leak))
        console.print(table)
        if len(leaks) > 20:
            console.print(f"... and {len(leaks) - 20} more")
        if self.leakage == "error":
            raise UserError(
                "no video and no creator in two splits, as data.leakage=error asks",
                f"{len(leaks)} leaks, in the table above",
                "Mend the splits, or give data.leakage=drop or warn.",
            )
        if self.leakage == "warn":
            rank_zero_warn("Held-out figures will look better than they are: see the leakage table above.")

    def _report_splits(self, console: Console) -> None:
        table = Table(title="Videos", title_justify="left")
        table.add_column("class")
        for split in SPLITS:
            table.add_column(split, justify="right")
        for name in self.classes:
            counts = [str((self.rows(split)["label"] == name).sum()) for split in SPLITS]
            table.add_row(Text(name), *counts)
        console.print(table)
        lost = (self.manifest["status"] == "undecodable").sum()
        if lost:
            console.print(f"[yellow]{lost} videos could not be decoded and are left out[/yellow]")

    def rows(self, split: str) -> pd.DataFrame:
        """The manifest's usable rows of one split, in the order of the split's dataset."""
        usable = self.manifest["status"].isin(["ok", "partial"]) & (self.manifest["split"] == split)
        return self.manifest[usable].reset_index(drop=True)

    def dataset(self, split: str, *, train: bool = False) -> VideoDataset:
        """The videos of one split: jittered and one clip of each for training, else all clips."""
        rows = self.rows(split)
        labels = [self.classes.index(label) for label in rows["label"]]
        hashes, jitter = list(rows["sha256"]), self.temporal_jitter and train
        return VideoDataset(self.store, hashes, labels, self.num_frames, jitter, every_clip=not train)

    def loader(self, split: str, *, train: bool) -> DataLoader[VideoBatch | FeatureBatch]:
        """Batches: shuffled and jittered for training, else in order, each video once over all devices."""
        videos = self.dataset(split, train=train)
        dataset = videos if self.features is None else FeatureDataset(videos, self.features)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=VideoSampler(
                len(dataset),
                shuffle=train,
                seed=self.seed,
                rank=rank,
                world_size=world_size,
                balance=videos.labels if train and self.sampler == "balanced" else None,
            ),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            # Its own, or starting a loader would draw from the global one, sooner in a resumed run than in a whole one.
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader[VideoBatch | FeatureBatch]:
        """The training split, in a new order each epoch."""
        return self.loader("train", train=True)

    def val_dataloader(self) -> DataLoader[VideoBatch | FeatureBatch]:
        """The validation split, in order."""
        return self.loader("val", train=False)
