"""Chosen frames of a video with PyAV, which reports damage frame by frame."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from vidcls.data.decoding.orientation import AS_STORED, orientation
from vidcls.data.decoding.track import Track, demux, open_video
from vidcls.data.sampling import TIE_SECONDS

MOST_UNSEEN = 0.3  # of a video, behind the last frame that is wanted
# Each frame of so much at the end is decoded: the one that has been cut may be shown before others.
CHECKED_SECONDS = 1.0


class ChosenFrames:
    """Yields (pixels, intact) for each of ``times``: the frame that appears then, upright and resized.

    If that frame cannot be decoded, the nearest one before it (or else after it) replaces it, marked as not intact.
    After damage, all frames up to the next intact key frame count as damaged, since they may refer to damaged ones.
    ``times`` are ascending frame times of `read_track`; ``decoded`` counts the frames that the decoder has returned.
    With the times of all key frames in ``keys`` (see `Scan`), packets between the last wanted frame of a group of
    pictures and the next group with a wanted frame are not decoded.
    Where a format does not say where the video ends, what follows the last of ``times`` is decoded too, unless it is
    much: FFmpeg then reports if the last frame has been cut.
    """

    def __init__(
        self,
        path: Path,
        track: Track,
        times: Float[np.ndarray, " M"],
        resolution: int,
        threads: int = 1,
        keys: Float[np.ndarray, " G"] | None = None,
    ) -> None:
        self._path, self._clock, self._times, self._threads = path, track.frame_seconds, times, threads
        self._transform = _RotateAndResize(resolution)
        self._keys = np.empty(0) if keys is None else keys
        checked = track.endless and track.end_seconds - times[-1] < MOST_UNSEEN * track.seconds
        self._checked_from = track.end_seconds - CHECKED_SECONDS if checked else math.inf
        self.decoded = 0

    def __iter__(self) -> Iterator[tuple[UInt8[np.ndarray, "R R 3"], bool]]:
        times, transform = self._times, self._transform
        index, previous = 0, None
        for seconds, frame, intact in self._frames():
            if previous is None:
                transform.update_orientation(frame)
            while index < len(times) and times[index] < seconds - TIE_SECONDS:  # its own frame is missing
                yield transform(frame if previous is None else previous), False
                index += 1
            transform.update_orientation(frame)
            while index < len(times) and times[index] <= seconds + TIE_SECONDS:
                yield transform(frame), intact
                index += 1
            previous = frame
            if index == len(times) and self._checked_from == math.inf:
                return
        if previous is None:
            raise ValueError("not one frame could be decoded")
        for _ in times[index:]:
            yield transform(previous), False

    def _frames(self) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        container, stream = open_video(self._path)
        with container:
            stream.thread_type = "FRAME" if self._threads > 1 else "NONE"
            context = stream.codec_context
            context.thread_count = self._threads
            skippable = context.name in ("h264", "hevc") and self._clock is None  # counting needs every frame
            intact: bool | None = None
            for packet in self._needed(demux(container, stream)):
                if intact is None:
                    intact = packet.is_keyframe
                if skippable:
                    # FFmpeg skips unwanted frames that no other frame refers to, which saves a quarter of the work with
                    # x264's usual B-frames. Not for every codec: dav1d would drop wanted frames too.
                    context.skip_frame = "DEFAULT" if self._is_wanted(packet) else "NONREF"
                try:
                    frames = packet.decode()
                except av.MemoryError:
                    raise
                except av.FFmpegError:
                    intact = False
                    continue
                for frame in frames:
                    intact = not frame.is_corrupt and (intact or bool(frame.key_frame))
                    seconds = frame.time if self._clock is None else self.decoded * self._clock
                    self.decoded += 1
                    if seconds is not None:
                        yield seconds, frame, intact
                if not packet.size:
                    context.flush_buffers()
                    intact = False  # until the next key frame

    def _needed(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """The packets to decode; an empty one, which flushes the decoder, in place of those left out."""
        groups = Counter((np.searchsorted(self._keys, self._times + TIE_SECONDS, side="right") - 1).tolist())
        group, left, skipping = -1, 0, False  # left: wanted frames in the rest of this group of pictures
        for packet in packets:
            if len(self._keys) and packet.size:
                if packet.is_keyframe:
                    group += 1
                    left = groups[group]
                opening = packet.is_keyframe and group == 0  # may hold the orientation of all frames
                if not left and not opening and not (groups[group] and groups[group + 1]):
                    if not skipping:
                        empty = av.Packet()
                        empty.stream, empty.time_base = packet.stream, packet.time_base
                        yield empty
                    skipping = True
                    continue
                skipping = False
                left -= self._is_wanted(packet)
            yield packet

    def _is_wanted(self, packet: av.Packet) -> bool:
        if not packet.size or packet.pts is None:
            return True
        seconds = float(packet.pts * packet.time_base)
        nearest = np.searchsorted(self._times, seconds - TIE_SECONDS)
        wanted = nearest < len(self._times) and self._times[nearest] <= seconds + TIE_SECONDS
        return bool(wanted or seconds >= self._checked_from)


class _RotateAndResize:
    """Rotates and mirrors frames as players do, and resizes them to R x R, with one scaler for all."""

    def __init__(self, resolution: int) -> None:
        self._side, self._scaler, self._orientation = resolution, VideoReformatter(), AS_STORED

    def update_orientation(self, frame: av.VideoFrame) -> None:
        """Updates the orientation from a frame, if it has one."""
        self._orientation = orientation(frame, self._orientation)

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "R R 3"]:
        side, turns = self._side, self._orientation.filters
        if not turns and not frame.interlaced_frame:  # it would scale the fields separately, into stripes
            scaled = self._scaler.reformat(frame, side, side, "rgb24", interpolation="BILINEAR", threads=1)
            return scaled.to_ndarray()
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        scale = graph.add("scale", f"{side}:{side}:flags=bilinear")
        filters = [graph.add(name, argument) for name, argument in turns]  # before the scaler, as ffmpeg does
        graph.link_nodes(source, *filters, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        graph.push(frame)
        return graph.pull().to_ndarray()
