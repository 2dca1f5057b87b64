"""Pictures of videos for pages and dashboards."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vidcls.data.store import FrameStore, StoreEntryError


def thumbnails(store: FrameStore, sha256: str, count: int, side: int) -> UInt8[np.ndarray, "N R R 3"]:
    """Frames from the middles of ``count`` equal segments of a video, resized; raises `StoreEntryError`."""
    indices = ((np.arange(count) + 0.5) * store.spec.frames_per_video / count).astype(np.int64)
    frames = store.read(sha256, np.unique(indices))
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side))) for frame in frames])


def strip(store: FrameStore, sha256: str, count: int, side: int) -> str:
    """`thumbnails` side by side, as JPEG in base64; "" if the store does not have the video."""
    try:
        frames = thumbnails(store, sha256, count, side)
    except StoreEntryError:
        return ""
    return jpeg_base64(Image.fromarray(np.concatenate(list(frames), axis=1)), quality=80)


def jpeg_base64(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()
