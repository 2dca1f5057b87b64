"""The tasks of a decoding process. Imports decoders inside functions, as the parent process needs none."""

from multiprocessing.connection import Client
from pathlib import Path
from typing import NamedTuple

from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.result import DecodeResult, UndecodableError, undecodable
from vidcls.data.hashing import FileState, HashResult
from vidcls.data.store import FrameStore

CHANGED = "the file has changed while being read"


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


def decode_to_store(file: Path, hashed: HashResult, store: FrameStore, decoders: tuple[str, ...]) -> DecodeResult:
    """Decodes one video and stores its frames under its hash, unless the file has changed since it was hashed.

    A file that cannot be read or decoded is a result; a store that cannot be written raises UserError or OSError.
    """
    from vidcls.data.decoding.frames import decode

    try:
        frames, result = decode(file, store.spec, decoders)
    except UndecodableError as error:
        result = undecodable(str(error))
    if FileState.of(file) != hashed.state:
        return undecodable(CHANGED)
    if result.status != "undecodable":
        store.write(hashed.sha256, frames, result)
    return result


def send_windows(
    address: str,
    number: int,
    file: Path,
    state: FileState | None,
    plan: WindowPlan,
    decoders: tuple[str, ...],
    threads: int,
) -> None:
    """Sends ``number``, then (seconds, number of windows), each `Window` and last the `DecodeResult` to the pool."""
    from vidcls.data.decoding.windows import stream_windows

    with Client(address) as connection:
        connection.send(number)
        try:
            video = stream_windows(file, plan, decoders, threads)
            connection.send((video.seconds, len(video)))
            for window in video:
                connection.send(window)
            assert video.result is not None
            result = video.result
        except UndecodableError as error:
            result = undecodable(str(error))
        except (BrokenPipeError, ConnectionResetError):  # the receiver needs no more
            return
        connection.send(result if FileState.of(file) == state else undecodable(CHANGED))
