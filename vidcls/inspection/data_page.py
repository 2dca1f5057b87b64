"""data.html: the videos of a source, in one file that needs no network."""

import colorsys
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vidcls.data.decoding.result import LOST, USABLE
from vidcls.data.decoding.worker import VideoHeader
from vidcls.data.options import SPLITS
from vidcls.data.pictures import strip
from vidcls.data.splits import find_leaks
from vidcls.data.store import FrameStore
from vidcls.files import write_atomically
from vidcls.inspection.clip_map import NEIGHBOURS, VideoMap, neighbour_table
from vidcls.pages import render_page

SHEET = 24  # videos of a class on its contact sheet
MAX_ROWS = 100  # of a table
MAX_VALUES = 8  # of a property that are listed
MAX_CLASSES = 8  # with a column each
SIDE = 96  # pixels per side of a picture
MAP = 400  # units per side of the map
# Those of Okabe and Ito, without black, and two more.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#b8ac00")


def write_page(
    folder: Path,
    source: str,
    manifest: pd.DataFrame,
    headers: Sequence[VideoHeader | None],
    problem: str,
    videos: VideoMap,
    store: FrameStore,
    seed: int,
) -> Path:
    """Writes data.html about the videos of `vidcls.data.preparation.survey_videos`, and returns its path.

    ``problem`` is why the videos cannot be split, or "".
    """
    usable = manifest[manifest["status"].isin(USABLE)]
    damaged = manifest[manifest["status"].isin(["partial", *LOST])]
    leaks = find_leaks(manifest)
    creators = usable[usable["creator"] != ""].groupby("creator")["label"]
    content = render_page(
        Path(__file__).parent,
        "data_page",
        source=source,
        problem=problem,
        manifest=manifest,
        statuses=manifest["status"].value_counts().to_dict(),
        counts=_counts(usable),
        creators=_creators(usable),
        num_creators=len(creators),
        one_class=int((creators.nunique() == 1).sum()),
        properties=list(_properties(manifest, headers)),
        damaged=damaged.head(MAX_ROWS).to_dict("records"),
        num_damaged=len(damaged),
        leaks=leaks.head(MAX_ROWS).to_dict("records"),
        num_leaks=len(leaks),
        clusters=_clusters(usable, store),
        num_clusters=usable["cluster"].replace("", np.nan).nunique(),
        sheets=list(_sheets(usable, store, seed)),
        videos=videos,
        maps=[_points(videos, key) for key in ("label", "creator")],
        neighbours=neighbour_table(videos),
        num_neighbours=NEIGHBOURS,
        num_usable=usable["sha256"].nunique(),
    )
    path = folder / "data.html"
    write_atomically(path, content)
    return path


def _counts(usable: pd.DataFrame) -> dict[str, Any]:
    """Videos of each class (rows) and split (columns), with their sums."""
    splits = [split for split in (*SPLITS, "") if (usable["split"] == split).any()]
    table = pd.crosstab(usable["label"], usable["split"]).reindex(columns=splits, fill_value=0)
    rows = [(label, [*row, row.sum()]) for label, row in table.iterrows()]
    return {"splits": splits, "rows": [*rows, ("all", [*table.sum(), table.to_numpy().sum()])]}


def _creators(usable: pd.DataFrame) -> list[tuple[str, int, str]]:
    """The creators of most videos: name, videos, and how many of each class."""
    known = usable[usable["creator"] != ""].groupby("creator")["label"]
    largest = known.size().sort_values(ascending=False, kind="stable").head(MAX_ROWS // 5)
    counts = {name: known.get_group(name).value_counts() for name in largest.index}
    return [
        (name, int(n), ", ".join(f"{label} {k}" for label, k in counts[name].items())) for name, n in largest.items()
    ]


def _properties(manifest: pd.DataFrame, headers: Sequence[VideoHeader | None]) -> Iterator[dict[str, Any]]:
    """Properties from which a network could learn the class by mistake: each value with its videos of each class."""
    table = manifest[["label", "seconds"]].assign(
        **{"header": headers, "bytes": [_size(file) for file in manifest["file"]]}
    )[manifest["status"].isin(USABLE).to_numpy()]
    known = table[table["header"].notna()]
    yield _values("Duration (s)", table["label"], _ranges(table["seconds"]))
    yield _values("File (MB)", table["label"], _ranges(table["bytes"] / 1e6))
    texts = {
        "Picture": lambda header: f"{header.width} x {header.height}",
        "Frames per second": lambda header: f"{header.frame_rate:.4g}" if header.frame_rate else "unknown",
        "Codec": lambda header: header.codec,
        "Rotation (degrees)": lambda header: f"{header.rotation}{', mirrored' * header.mirrored}",
    }
    for name, text in texts.items():
        yield _values(name, known["label"], known["header"].map(text))


def _values(name: str, labels: pd.Series, values: pd.Series) -> dict[str, Any]:
    counts = pd.crosstab(values, labels)
    if not isinstance(values.dtype, pd.CategoricalDtype):  # ranges are in order
        counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
        rest = counts.iloc[MAX_VALUES:]
        counts = counts.iloc[:MAX_VALUES]
        if len(rest):
            counts.loc[f"{len(rest)} others"] = rest.sum()
    shown = list(counts.columns) if counts.shape[1] <= MAX_CLASSES else []
    rows = [(str(value), int(row.sum()), [int(row[label]) for label in shown]) for value, row in counts.iterrows()]
    return {"name": name, "classes": shown, "rows": rows, "most": max((row[1] for row in rows), default=0)}


def _ranges(numbers: pd.Series) -> pd.Series:
    """Six ranges of equal width, named by their ends; the numbers themselves if they are few or nearly equal."""
    known = numbers.dropna()
    if known.nunique() > 6:
        ranges = pd.cut(known, 6)
        names = [f"{max(one.left, known.min()):.3g} to {one.right:.3g}" for one in ranges.cat.categories]
        if len(set(names)) == len(names):
            return ranges.cat.rename_categories(names)
    return known.map("{:.3g}".format)


def _size(file: str) -> float:
    """The size of a local file in bytes; NaN if unknown."""
    try:
        return float(Path(file).stat().st_size)
    except OSError:
        return math.nan


def _clusters(usable: pd.DataFrame, store: FrameStore) -> list[dict[str, Any]]:
    """The largest clusters of near-duplicates, those in several splits or classes first."""
    found = []
    for _, rows in usable[usable["cluster"] != ""].groupby("cluster"):
        alarms = [name for name in ("split", "label") if rows[name].nunique() > 1]
        found.append((-len(alarms), -len(rows), alarms, rows))
    found.sort(key=lambda one: one[:2])
    return [
        {
            "alarms": alarms,
            "size": len(rows),
            "members": [
                (row, strip(store, row["sha256"], 3, SIDE)) for row in rows.head(SHEET // 2).to_dict("records")
            ],
        }
        for _, _, alarms, rows in found[: MAX_ROWS // 2]
    ]


def _sheets(usable: pd.DataFrame, store: FrameStore, seed: int) -> Iterator[tuple[str, int, list[tuple[str, str]]]]:
    """For each class: its name, its number of videos, and path and picture of some random ones."""
    for label, rows in usable.drop_duplicates("sha256").groupby("label"):
        drawn = rows.sample(min(len(rows), SHEET), random_state=seed)
        yield str(label), len(rows), [(row.path, strip(store, row.sha256, 1, SIDE)) for row in drawn.itertuples()]


def _points(videos: VideoMap, key: str) -> dict[str, Any]:
    """The map's points, coloured by a column of the manifest, and the colours of the most frequent values."""
    names = list(videos.rows[key].value_counts().drop("", errors="ignore").index)
    colors = {name: _color(index, len(names)) for index, name in enumerate(names)}
    plane = np.zeros((len(videos.rows), 2))
    plane[:, : min(2, videos.vectors.shape[1])] = videos.vectors[:, :2]
    spans = np.maximum(np.ptp(plane, axis=0), 1e-9)
    plane = 10 + (plane - plane.min(axis=0)) / spans * (MAP - 20)
    points = [
        (round(float(x), 1), round(MAP - float(y), 1), colors.get(row[key], "#888"), row["path"], row[key])
        for (x, y), row in zip(plane, videos.rows.to_dict("records"), strict=True)
    ]
    return {"key": key, "points": points, "legend": list(colors.items())[:12], "more": max(len(names) - 12, 0)}


def _color(index: int, count: int) -> str:
    """One of `COLORS`, which colour-blind readers can distinguish; of a colour wheel if there are too few."""
    if count <= len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hls_to_rgb(index * 0.618034 % 1, 0.35 + 0.25 * (index % 2), 0.7)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
