"""Packets that a transport stream has lost are noticed, whatever the decoder makes of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.frames import moving
from helpers.videos import ffmpeg, write_video

from vidcls.data.decoding.frames import decode
from vidcls.data.decoding.transport_stream import read_transport_stream
from vidcls.data.sampling import StoreSpec

Packets = list[bytes]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    options = {"x265-params": "keyint=8:log-level=none"}
    video = write_video(folder / "a.mp4", moving(24), codec="libx265", options=options)
    ffmpeg("-i", video, "-c", "copy", folder / "a.ts")
    return folder / "a.ts"


def packets_of(path: Path) -> Packets:
    content = path.read_bytes()
    return [content[start : start + 188] for start in range(0, len(content), 188)]


def identifier(path: Path) -> int:
    with av.open(str(path)) as container:
        return int(container.streams.video[0].id)


def of_stream(packet: bytes, number: int) -> bool:
    return ((packet[1] & 0x1F) << 8 | packet[2]) == number and bool(packet[3] & 0x10)


def without(packets: Packets, number: int, own: bool, place: int = 5) -> bytes:
    places = [at for at, packet in enumerate(packets) if of_stream(packet, number) == own]
    return b"".join(packet for at, packet in enumerate(packets) if at != places[place])


def twice(packets: Packets, number: int) -> bytes:
    place = next(at for at, packet in enumerate(packets) if of_stream(packet, number))
    return b"".join(packets[: place + 1] + packets[place:])


def marked(packets: Packets, number: int) -> bytes:
    place = next(at for at, packet in enumerate(packets) if of_stream(packet, number))
    bad = bytearray(packets[place])
    bad[1] |= 0x80  # transport_error_indicator
    return b"".join([*packets[:place], bytes(bad), *packets[place + 1 :]])


@pytest.mark.parametrize(
    "change, gaps",
    [
        (lambda packets, _: b"".join(packets), 0),
        (lambda packets, number: without(packets, number, own=True), 1),
        (lambda packets, number: without(packets, number, own=False, place=2), 0),
        (twice, 0),
        (marked, 1),
        (lambda packets, _: b"".join(packets)[:-300], 1),
        (lambda packets, _: b"".join(packets)[:1000] + b"\0" + b"".join(packets)[1000:], 1),
        (lambda packets, _: b"no stream", 1),
    ],
)
def test_gaps_are_counted(
    stream: Path, tmp_path: Path, change: Callable[[Packets, int], bytes], gaps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidcls.data.decoding.transport_stream.PACKETS_AT_ONCE", 3)  # a gap may lie between two reads
    changed = tmp_path / "changed.ts"
    changed.write_bytes(change(packets_of(stream), identifier(stream)))
    assert read_transport_stream(changed, identifier(stream))[0] == gaps


@pytest.mark.parametrize("before, after", [(4, 0), (0, 16)])
def test_other_layouts_are_read(stream: Path, tmp_path: Path, before: int, after: int) -> None:
    changed = tmp_path / "changed.ts"
    for packets, gaps in (
        (packets_of(stream), 0),
        (packets_of(stream)[:40] + packets_of(stream)[43:], 1),
    ):
        changed.write_bytes(b"".join(bytes(before) + packet + bytes(after) for packet in packets))
        assert len(packets) > 43
        assert read_transport_stream(changed, identifier(stream)) == (gaps, {identifier(stream)})


def test_a_video_with_a_gap_is_partial(stream: Path, tmp_path: Path) -> None:
    assert decode(stream, StoreSpec(4, 32), ("pyav",))[1].status == "ok"
    packets, damaged = packets_of(stream), tmp_path / "damaged.ts"
    statuses = set()
    for place in np.linspace(1, 40, 9).astype(int):
        damaged.write_bytes(without(packets, identifier(stream), own=True, place=place))
        result = decode(damaged, StoreSpec(4, 32), ("pyav",))[1]
        statuses.add(result.status)
        assert "1 gap in the transport stream" in result.reason
    assert statuses == {"partial"}
