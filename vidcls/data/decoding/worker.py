"""The tasks of a decoding process. Imports decoders inside functions, as the parent process needs none."""

from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import NamedTuple

from vidcls.data.decoding.plan import Spans, WindowPlan
from vidcls.data.decoding.result import UndecodableError, undecodable
from vidcls.data.file_hashes import FileState, HashResult
from vidcls.data.store import FrameStore

CHANGED = "the file has changed while being read"


class Source(NamedTuple):
    """The file of a video, its state when it was hashed, and the part of it to read if not all of it."""

    file: Path
    state: FileState | None
    spans: Spans | None = None


class VideoHeader(NamedTuple):
    """The properties of a file's video track."""

    codec: str
    width: int  # as stored, before rotation
    height: int
    frame_rate: float | None  # on average
    rotation: int  # degrees counter-clockwise
    mirrored: bool  # left and right, before rotation


def read_header(file: Path) -> VideoHeader | None:
    """The header of a video; decodes the first frame, which alone holds the rotation. None if there is no video."""
    from vidcls.data.decoding.orientation import orientation
    from vidcls.data.decoding.track import decoding, open_video

    try:
        with decoding(file, "pyav"):
            container, stream = open_video(file)
            with container:
                context, rate = stream.codec_context, stream.average_rate
                degrees, mirrored, _ = orientation(next(container.decode(stream)))
                frame_rate = float(rate) if rate else None
                return VideoHeader(context.name, context.width, context.height, frame_rate, degrees, mirrored)
    except UndecodableError:
        return None


def store_frames(
    address: str, number: int, video: tuple[Path, HashResult], decoders: tuple[str, ...], store: FrameStore
) -> None:
    """Stores the frames of a video under its hash; sends ``number`` and then the `DecodeResult` to the pool.

    A file that cannot be decoded, or has changed since it was hashed, is a result; a store that cannot be written
    raises UserError or OSError.
    """
    from vidcls.data.decoding.frames import decode

    file, hashed = video
    with Client(address) as connection:
        connection.send(number)
        try:
            frames, result = decode(file, store.spec, decoders)
        except UndecodableError as error:
            result = undecodable(str(error))
        if FileState.of(file) != hashed.state:
            result = undecodable(CHANGED)
        elif result.status != "undecodable":
            store.write(hashed.sha256, frames, result)
        connection.send(result)


def send_windows(
    address: str, number: int, video: Source, decoders: tuple[str, ...], plan: WindowPlan, threads: int
) -> None:
    """Sends ``number``, then (seconds, number of windows), each `Window` and last the `DecodeResult` to the pool."""
    from vidcls.data.decoding.windows import stream_windows

    with Client(address) as connection:
        connection.send(number)
        try:
            stream = stream_windows(video.file, replace(plan, spans=video.spans), decoders, threads)
            connection.send((stream.seconds, len(stream)))
            for window in stream:
                connection.send(window)
            assert stream.result is not None
            result = stream.result
        except UndecodableError as error:
            result = undecodable(str(error))
        except (BrokenPipeError, ConnectionResetError):  # the receiver needs no more
            return
        connection.send(result if FileState.of(video.file) == video.state else undecodable(CHANGED))
