"""The outcome of decoding one video. Light: imports no decoder."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from jaxtyping import UInt8

DECODERS = ("decord", "pyav")  # in the order in which they are tried
USABLE = ("ok", "partial")  # the statuses of videos that have frames
LOST = ("undecodable", "unfetchable")  # and of those that have none

Frames = UInt8[np.ndarray, "F R R 3"]


@dataclass(frozen=True)
class DecodeResult:
    """The outcome for one video, without its frames."""

    # ok; partial: frames are damaged or missing, or a player may show others; undecodable; unfetchable
    status: str
    reason: str  # why it is not ok, else ""
    decoder: str  # decord or pyav
    seconds: float  # from the first frame's appearance to the last one's end
    coverage: float  # the fraction of the requested frames that is intact, 0..1


def summarise(reasons: Sequence[str], decoder: str, seconds: float, coverage: float) -> DecodeResult:
    """The result for a video with intact frames: partial if there are reasons, else ok."""
    return DecodeResult("partial" if reasons else "ok", "; ".join(reasons), decoder, seconds, coverage)


def undecodable(reason: str) -> DecodeResult:
    """The result for a video without a single intact frame."""
    return DecodeResult("undecodable", reason, decoder="", seconds=0.0, coverage=0.0)


def unfetchable(reason: str) -> DecodeResult:
    """The result for a video behind a URL that could not be fetched."""
    return DecodeResult("unfetchable", reason, decoder="", seconds=0.0, coverage=0.0)


def is_doubtful(result: DecodeResult) -> bool:
    """Whether another machine may have another result: fetching failed, or decoding was too slow or was killed."""
    return result.status == "unfetchable" or any(text in result.reason for text in ("SIGKILL", "timed out after"))


class UndecodableError(Exception):
    """No decoder returned a single intact frame; the message holds the reason of each."""


@functools.cache
def decoder_versions() -> dict[str, str]:
    """The version of each decoder and of the libavcodec in its wheel: others may give other frames."""
    versions = {}
    for package in ("decord", "av"):
        found = metadata.distribution(package)
        names = " ".join(file.name for file in found.files or [])
        codec = re.search(r"libavcodec[\w-]*\.(?:so\.)?([\d.]*\d)", names)
        versions[package] = f"{found.version}-{codec[1]}" if codec else found.version
    return versions
