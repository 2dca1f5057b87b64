"""From a source to a manifest: list, hash, decode, split, report problems. Imports neither torch nor decoders."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vidcls.data.archive import unpack
from vidcls.data.decisions import read_decisions
from vidcls.data.decoding.result import USABLE
from vidcls.data.file_hashes import HashCache
from vidcls.data.ingest import IngestStats, ingest, known_hashes
from vidcls.data.manifest import count_training_videos, print_splits, read_manifest, report_bad, usable_rows
from vidcls.data.near_duplicates import name_clusters
from vidcls.data.options import SPLITS, DataOptions, class_order
from vidcls.data.reviewed_labels import use_decisions
from vidcls.data.sources import list_videos
from vidcls.data.splits import HELD_OUT_FIRST, assign_splits, check_all_or_none, drop_leaks, find_leaks, group_videos
from vidcls.data.store import FrameStore
from vidcls.data.urls import redact
from vidcls.errors import UserError, printable

MAX_SHOWN = 20  # leaks


@dataclass(frozen=True)
class PreparedVideos:
    """A manifest, its K classes in the order of the probabilities, and the cost of its ingest."""

    manifest: pd.DataFrame
    classes: list[str]
    stats: IngestStats


def frame_store(options: DataOptions) -> FrameStore:
    """The store of decoded frames that these options use."""
    return FrameStore(Path(options.cache_dir, "store"), options.store)


def prepare_videos(options: DataOptions, console: Console, manifest_path: Path | None = None) -> PreparedVideos:
    """Lists, decodes and splits the videos of a source, and reports problems.

    If ``manifest_path`` exists, the run is resumed with the videos and splits in it, even if the source has changed.

    Raises:
        UserError: the source holds nothing to train on, or what ``data.leakage`` or ``data.on_bad`` forbid; or the
            store has lost videos of a resumed run, and they have changed since.
    """
    for note in options.notes:
        console.print(note, soft_wrap=True)
    if manifest_path is not None and manifest_path.exists():
        return _resume(options, read_manifest(manifest_path), console)
    manifest, stats = _read_source(options, console)
    classes = class_order([label for label in manifest["label"] if label], options.classes)
    given = list(manifest["split"])
    _assign_splits(manifest, options)
    if options.split.grouped and given != list(manifest["split"]) and (unknown := (manifest["creator"] == "").sum()):
        text = f"The creators of {unknown} of {len(manifest)} videos are unknown (data.creator_pattern)"
        console.print(f"[yellow]{text}[/yellow]: the same one may be in several drawn splits", soft_wrap=True)
    if options.decisions:
        decisions = read_decisions(options.decisions)
        groups = _groups(manifest, options)
        manifest = use_decisions(manifest, groups, decisions, options.disagreement, classes, console)
        classes = class_order(list(manifest["label"]), options.classes)
    manifest = _handle_leaks(manifest, find_leaks(manifest), HELD_OUT_FIRST, options.leakage, console)
    print_splits(manifest, classes, console)
    for name in ("train", "val"):
        if usable_rows(manifest, name).empty:
            raise UserError(
                f"at least one decodable video in the {name} split",
                f"none of {len(manifest)} videos",
                "Add videos, or see the statuses and reasons above.",
                f"empty-{name}-split",
            )
    if options.sampler == "balanced":
        count_training_videos(manifest, classes, "data.sampler")
    return PreparedVideos(manifest, classes, stats)


def survey_videos(options: DataOptions, console: Console) -> tuple[pd.DataFrame, str]:
    """The manifest of all videos of a source, with the column ``file``, and why they cannot be split, or ""."""
    manifest, _ = _read_source(options, console)
    try:
        _assign_splits(manifest, options)
    except UserError as error:
        return manifest, str(error)
    return manifest, ""


def _read_source(options: DataOptions, console: Console) -> tuple[pd.DataFrame, IngestStats]:
    _draw_demo(options)
    manifest, stats = _ingest(_list(options, options.classes, console), options, console)
    manifest["cluster"] = _clusters(manifest, options)
    return manifest, stats


def _assign_splits(manifest: pd.DataFrame, options: DataOptions) -> None:
    labelled = manifest[manifest["label"] != ""]
    manifest.loc[labelled.index, "split"] = assign_splits(
        list(labelled["label"]),
        _groups(labelled, options),
        list(labelled["split"]),
        val_fraction=options.split.val_fraction,
        test_fraction=options.split.test_fraction,
        seed=options.seed,
    )


def _groups(videos: pd.DataFrame, options: DataOptions) -> list[str]:
    clusters, usable = options.near_duplicates == "group", videos["status"].isin(USABLE)
    # Files without a video are no copies: empty ones would tie all creators that have one into a single group.
    contents = videos.assign(sha256=videos["sha256"].where(usable, ""))
    return group_videos(contents, creators=options.split.grouped, clusters=clusters)


def _resume(options: DataOptions, manifest: pd.DataFrame, console: Console) -> PreparedVideos:
    console.print(f"Continuing with the {len(manifest)} videos and the splits of manifest.csv")
    try:
        listing = _list(options, options.classes, console)
    except UserError as error:
        console.print(f"The source cannot be compared with it: {error}", markup=False, soft_wrap=True)
    else:
        _report_changes(listing, manifest, options, console)
    stats = redecode_missing(options, manifest, SPLITS, console)
    return PreparedVideos(manifest, class_order(list(manifest["label"]), options.classes), stats)


def _report_changes(listing: pd.DataFrame, manifest: pd.DataFrame, options: DataOptions, console: Console) -> None:
    """Prints how the source differs from the manifest of a resumed run."""
    known = dict(zip(manifest["path"], manifest["sha256"], strict=True))
    kept = listing[listing["path"].isin(list(known))]
    with closing(HashCache(_hash_cache(options))) as cache:
        now = list(zip(kept["path"], known_hashes(kept, cache, options.fetch), strict=True))
    differences = {
        # Those without a label have been there, and were not used either.
        "new, and not used": [path for path in listing.loc[listing["label"] != "", "path"] if path not in known],
        "gone": [path for path in known if path not in set(kept["path"])],
        "changed": [path for path, found in now if found and known[path] not in ("", found.sha256)],
    }
    for kind, paths in differences.items():
        if paths:
            first = f"{len(paths)} videos of the source are {kind}, such as {paths[0]}"
            console.print(f"[yellow]Since this run was started:[/yellow] {escape(first)}", soft_wrap=True)


def prepare_external(options: DataOptions, split: str, trained_on: pd.DataFrame, console: Console) -> PreparedVideos:
    """Lists and decodes other data of the classes ``options.classes``, to evaluate a trained network on.

    If the source has splits, only ``split`` is used, else all videos.

    Args:
        options: the run's, with the other source.
        split: the split of the videos in the manifest.
        trained_on: the manifest of the network's own videos. What the source shares with it is reported as leakage.
        console: for reports.

    Raises:
        UserError: unknown classes, no video of ``split``, none that can be decoded, or what ``data.on_bad`` or
            ``data.leakage`` forbid.
    """
    assert options.classes is not None
    classes = list(options.classes)
    listing = _of_splits(_list(options, classes, console, refuse_others=True), [split], options.source)
    manifest, stats = _ingest(listing, options, console)
    seen = trained_on[trained_on["split"].isin(["train", "val"])]
    seen = seen.assign(split=seen["split"] + " of run")
    both = pd.concat([manifest.assign(split="evaluated"), seen], ignore_index=True)
    both["cluster"] = _clusters(both, options)
    leaks = find_leaks(both)
    leaks = leaks[leaks["splits"].str.contains("evaluated")]
    # Drop from what is evaluated, as the network has been trained on the rest already.
    order = [("evaluated", ("train of run", "val of run"))]
    manifest = _handle_leaks(both, leaks, order, options.leakage, console)[: len(manifest)].assign(split=split)
    if usable_rows(manifest, split).empty:
        remedy = "See the statuses and reasons above."
        raise UserError("at least one video to evaluate", f"none of {len(listing)}", remedy, "nothing-to-evaluate")
    return PreparedVideos(manifest, classes, stats)


def pool_videos(
    options: DataOptions, splits: Sequence[str], console: Console, recorded: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, int]:
    """The usable videos of ``splits``, or of a source without splits, and the number of videos of other splits.

    The columns are those of a manifest and ``file``; ``cluster`` is "" unless near-duplicates are to be grouped, and
    ``label`` may be "" with ``options.decisions``. If videos were ``recorded`` before (path, label, sha256), exactly
    those are used.

    Raises:
        UserError: none can be decoded, recorded ones have changed, or what ``data.on_bad`` forbids.
    """
    _draw_demo(options)
    listing = _list(options, options.classes, console)
    pooled = _of_splits(listing, splits, options.source)
    num_others = len(listing) - len(pooled)
    if any(redact(file) != file for file in pooled["file"]):  # lists of the folds would hold them
        remedy = "Give them as the environment variables or files that the storage's own tools read."
        raise UserError("a data.source without credentials in its URLs", "some", remedy, "url-credentials")
    if recorded is not None:
        pooled = pooled[pooled["path"].isin(list(recorded["path"]))]
    manifest, _ = _ingest(pooled, options, console)
    usable = manifest[manifest["status"].isin(USABLE)].reset_index(drop=True)
    if recorded is not None:
        expected = f"the videos of {options.source} as they were when this was started"
        remedy = "Restore them, or start again in another folder."
        _check_unchanged(recorded[["path", "label", "sha256"]], usable, expected, remedy)
    if options.near_duplicates == "group":
        usable["cluster"] = _clusters(usable, options)
    if usable.empty:
        raise UserError("videos that can be decoded", f"none of {len(manifest)}", "See above.", "nothing-to-evaluate")
    return usable, num_others


def redecode_missing(
    options: DataOptions, manifest: pd.DataFrame, splits: Sequence[str], console: Console
) -> IngestStats:
    """Decodes those videos of ``splits`` in a run's manifest again that the store has lost.

    Raises:
        UserError: such a video is no longer in the source, has changed, or cannot be decoded again.
    """
    store = frame_store(options)
    rows = pd.concat([usable_rows(manifest, split) for split in splits])
    lost = rows[[store.find(sha256) is None for sha256 in rows["sha256"]]]
    if lost.empty:
        return IngestStats()
    console.print(f"{len(lost)} of {len(rows)} videos are not in {store.folder}: decoding them again", markup=False)
    classes = class_order(list(manifest["label"]), options.classes)
    listing = _list(options, classes, console)
    found, stats = _decode(listing[listing["path"].isin(lost["path"])], options)
    report_bad(found, console)
    expected = f"the videos of manifest.csv in {options.source}"
    remedy = "Restore them, or name other data with data.source=PATH."
    _check_unchanged(lost[["path", "sha256"]], found[found["status"].isin(USABLE)], expected, remedy)
    return stats


def _of_splits(listing: pd.DataFrame, splits: Sequence[str], source: str) -> pd.DataFrame:
    """The listed videos of ``splits``, or all of a source without splits; raises `UserError` if there are none."""
    check_all_or_none(list(listing.loc[listing["label"] != "", "split"]))
    chosen = listing[listing["split"].isin(["", *splits])]
    if chosen.empty:
        expected, got = f"a {' or '.join(splits)} split in {source}", f"only {', '.join(sorted(set(listing['split'])))}"
        raise UserError(expected, got, "Choose other splits.", "missing-split")
    return chosen


def _check_unchanged(recorded: pd.DataFrame, usable: pd.DataFrame, expected: str, remedy: str) -> None:
    """Raises `UserError` unless each ``recorded`` row, path first, is among the usable ones."""
    now = set(usable[recorded.columns].itertuples(index=False, name=None))
    if changed := [row[0] for row in recorded.itertuples(index=False, name=None) if row not in now]:
        got = f"{len(changed)} that are missing, have changed or cannot be decoded, such as {changed[0]}"
        raise UserError(expected, got, remedy, "changed-videos")


def _draw_demo(options: DataOptions) -> None:
    if options.demo is not None:
        from vidcls.data.demo import draw_demo  # encodes videos, which nothing else here needs

        draw_demo(Path(options.source), **options.demo)


def _hash_cache(options: DataOptions) -> Path:
    return Path(options.cache_dir, "hashes.sqlite")


def _list(
    options: DataOptions, classes: Sequence[str] | None, console: Console, refuse_others: bool = False
) -> pd.DataFrame:
    listing = list_videos(options, classes, refuse_others, unpack(options))
    ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(listing.ignored.items()))
    found = f"Found {len(listing.videos)} videos in {options.source}"
    console.print(f"{found} (ignored {ignored})" if ignored else found, markup=False, soft_wrap=True)
    if listing.note:
        console.print(Text(listing.note, "yellow"), soft_wrap=True)
    return listing.videos


def _decode(listing: pd.DataFrame, options: DataOptions) -> tuple[pd.DataFrame, IngestStats]:
    parts = options.decode, _hash_cache(options), options.fetch, options.engine
    return ingest(listing, frame_store(options), *parts)


def _ingest(listing: pd.DataFrame, options: DataOptions, console: Console) -> tuple[pd.DataFrame, IngestStats]:
    manifest, stats = _decode(listing, options)
    report_bad(manifest, console)
    bad = manifest[manifest["status"] != "ok"]
    if options.on_bad == "error" and len(bad):
        raise UserError(
            "every video to be intact, for data.on_bad=error",
            f"{len(bad)} that are not, such as {bad.iloc[0].path}: {bad.iloc[0].reason}",
            "Fix or remove them, or set data.on_bad=skip.",
            "bad-videos",
        )
    return manifest, stats


def _clusters(manifest: pd.DataFrame, options: DataOptions) -> list[str]:
    ignored = options.near_duplicates == "ignore"
    return [""] * len(manifest) if ignored else name_clusters(manifest, frame_store(options))


def _handle_leaks(
    manifest: pd.DataFrame,
    leaks: pd.DataFrame,
    order: Sequence[tuple[str, Sequence[str]]],
    leakage: str,
    console: Console,
) -> pd.DataFrame:
    """Prints leaks, and does what ``data.leakage`` says; ``order`` is that of `drop_leaks`."""
    if leaks.empty:
        return manifest
    table = Table(title=f"Leakage between splits (data.leakage={leakage})", title_justify="left")
    for column in leaks.columns:
        table.add_column(column)
    for leak in leaks.head(MAX_SHOWN).itertuples(index=False):
        table.add_row(*(Text(printable(str(value))[:60]) for value in leak))
    console.print(table)
    if len(leaks) > MAX_SHOWN:
        console.print(f"... and {len(leaks) - MAX_SHOWN} more")
    if leakage == "error":
        raise UserError(
            "no video, copy or creator in two splits, for data.leakage=error",
            f"{len(leaks)} leaks, in the table above",
            "Fix the splits, or set data.leakage=drop or warn.",
            "leakage",
        )
    if leakage == "warn":
        warnings.warn("Held-out metrics will be optimistic: see the leakage table above.", stacklevel=2)
    if leakage == "drop":
        before = manifest["status"] == "dropped"  # by reviewers, or when the network was trained
        manifest = drop_leaks(manifest, order)
        console.print(f"Dropped {(manifest['status'] == 'dropped').sum() - before.sum()} leaking videos")
    return manifest
