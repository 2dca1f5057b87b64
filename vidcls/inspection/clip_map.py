"""Maps videos by colour and motion, or by a network's clip vectors, and counts neighbours."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.spatial.distance import cdist
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.tensorboard import SummaryWriter

from vidcls.data.decoding.result import USABLE
from vidcls.data.pictures import thumbnails
from vidcls.data.store import FrameStore
from vidcls.errors import UserError
from vidcls.pages import visible
from vidcls.prediction.run import BaseRun

MAX_MAPPED = 2000  # videos; a random choice of more
COMPONENTS = 32
NEIGHBOURS = 5
CELLS = 8  # per side of the picture
SPRITE = 48  # pixels per side


@dataclass(frozen=True)
class VideoMap:
    """N videos, and their P principal components."""

    rows: pd.DataFrame  # of the manifest
    vectors: Float[np.ndarray, "N P"]
    explained: Float[np.ndarray, " P"]  # the share of the variance in each component
    features: str  # a description of the features


def map_videos(
    manifest: pd.DataFrame, store: FrameStore, seed: int, run: BaseRun | None, accelerator: str | None
) -> VideoMap:
    """Maps the labelled videos that have frames, each content once, by the clip vectors of ``run`` or `frame_features`.

    Raises `UserError` if no video has frames. ``run`` must have a `vidcls.training.reference`.
    """
    usable = manifest[manifest["status"].isin(USABLE) & (manifest["label"] != "")].drop_duplicates("sha256")
    if usable.empty:
        remedy = "See the statuses and reasons above."
        raise UserError("videos that can be decoded", f"none of {len(manifest)}", remedy, "nothing-to-show")
    rows = usable.sample(min(len(usable), MAX_MAPPED), random_state=seed).sort_index().reset_index(drop=True)
    if run is None:
        vectors = np.stack([frame_features(store, sha256) for sha256 in rows["sha256"]])
        vectors = (vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), 1e-6)
        return VideoMap(rows, *principal_components(vectors), "colour and motion")
    videos = run.videos()
    videos.load_manifest(rows.assign(split="test"))
    vectors = run.make_predictor(accelerator).classify_split(videos, "test")[1]
    what = f"features (of the run {run.name}, which was trained on some)"
    return VideoMap(rows, *principal_components(vectors), what)


def frame_features(store: FrameStore, sha256: str) -> Float[np.ndarray, " D"]:
    """The mean colour and the deviation of the brightness over time, in `CELLS` x `CELLS` cells of the picture."""
    frames = store.read(sha256, np.arange(store.spec.frames_per_video)).astype(np.float32)
    pictures = np.concatenate([frames.mean(axis=0), frames.mean(axis=3).std(axis=0)[..., None]], axis=2)
    return adaptive_avg_pool2d(torch.from_numpy(pictures).movedim(2, 0), CELLS).flatten().numpy()


def principal_components(vectors: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "N P"], Float[np.ndarray, " P"]]:
    """The projections on the first `COMPONENTS`, and the share of the variance in each."""
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    return (u * s)[:, :COMPONENTS], (s**2 / max((s**2).sum(), 1e-12))[:COMPONENTS]


def neighbour_shares(
    vectors: Float[np.ndarray, "N P"], alike: Bool[np.ndarray, "N N"], allowed: Bool[np.ndarray, "N N"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """For each video, the fraction ``alike`` among its `NEIGHBOURS` nearest ``allowed`` ones, and among all of those.

    The second is the fraction expected by chance. NaN where none are allowed.
    """
    counts, alike = allowed.sum(axis=1), alike & allowed
    distances = np.where(allowed, cdist(vectors, vectors), np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    near = np.take_along_axis(alike, nearest, axis=1).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return near / np.minimum(counts, NEIGHBOURS), alike.sum(axis=1) / counts


def creators_and_classes(
    vectors: Float[np.ndarray, "N P"], creators: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]]:
    """`neighbour_shares` of the same creator, and of the same class among other creators and among all."""
    others, known = ~np.eye(len(vectors), dtype=bool), (creators != "") & (creators != "")[:, None]
    same, alike = creators[:, None] == creators, labels[:, None] == labels
    return {
        "the same creator": neighbour_shares(vectors, same, others & known),
        "the same class, among other creators": neighbour_shares(vectors, alike, ~same & known),
        "the same class, among all": neighbour_shares(vectors, alike, others),
    }


def neighbour_table(videos: VideoMap) -> list[tuple[str, float, float]]:
    """Rows of what is alike, its mean share among the nearest neighbours, and its share by chance."""
    creators, labels = (videos.rows[key].to_numpy(object) for key in ("creator", "label"))
    found = creators_and_classes(videos.vectors, creators, labels)
    means = {what: [one[~np.isnan(one)] for one in pair] for what, pair in found.items()}
    return [(what, float(one.mean()), float(chance.mean())) for what, (one, chance) in means.items() if len(one)]


def write_projector(folder: Path, videos: VideoMap, store: FrameStore) -> None:
    """Writes the map for TensorBoard's projector, with a picture of each video."""
    columns = ["path", "label", "creator", "split"]
    metadata = [[visible(text) for text in row] for row in videos.rows[columns].itertuples(index=False)]
    pictures = np.concatenate([thumbnails(store, sha256, 1, SPRITE) for sha256 in videos.rows["sha256"]])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(videos.vectors, metadata, images, tag="videos", metadata_header=columns)
