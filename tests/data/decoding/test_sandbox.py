"""Files that would show another file, and what a decoding process may do."""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.frames import SIDE, numbered, numbers
from helpers.videos import ffmpeg, write_video

from vidcls.data.decoding.frames import decode, decode_decord
from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.pool import create_pool
from vidcls.data.decoding.result import DECODERS, UndecodableError
from vidcls.data.decoding.windows import stream_windows
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec

SPEC = StoreSpec(4, SIDE)
PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:full:2011" '
    'type="static" mediaPresentationDuration="PT2S"><Period><AdaptationSet><Representation id="1" bandwidth="1" '
    'mimeType="video/mp4"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>\n'
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
IMF = '<?xml version="1.0"?>\n<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>\n'


pytestmark = pytest.mark.usefixtures("spawned")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_video(tmp_path / "another user" / "secret.mp4", numbered(4))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile '{}'\n",
        PLAYLIST,
        PLAYLIST.replace("\n{}", "\nfile://{}"),
        PLAYLIST.replace("\n{}", "\nhttp://127.0.0.1:1/{}"),
        PLAYLIST.replace("#EXTINF", '#EXT-X-MAP:URI="{0}"\n#EXTINF'),
        DASH,
        SDP,
        IMF,
        "[playlist]\nFile1={}\n",
    ],
    ids=["ffconcat", "hls", "hls_url", "hls_http", "hls_map", "dash", "sdp", "imf", "pls"],
)
def test_a_text_that_names_another_file_is_no_video(tmp_path: Path, secret: Path, text: str, relative: bool) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text(text.replace("{0}", "{}").replace("{}", "another user/secret.mp4" if relative else str(secret)))
    for decoders in (DECODERS, ("decord",), ("pyav",)):
        with pytest.raises(UndecodableError, match=r"^pyav: "):
            decode(path, SPEC, decoders)
    with pytest.raises(UndecodableError, match=r"^pyav: "):
        stream_windows(path, WindowPlan(SPEC, 1.0, 1.0, 0.0), DECODERS)


def test_a_playlist_with_a_video_behind_it_is_not_given_to_decord(tmp_path: Path, secret: Path) -> None:
    """Which would follow it, while PyAV finds the video."""
    ffmpeg("-i", write_video(tmp_path / "own.mp4", numbered(20)[10:]), "-c", "copy", tmp_path / "own.ts")
    text = PLAYLIST.format(secret).encode() + b"#"
    path = tmp_path / "clip.mp4"
    path.write_bytes(text.ljust(188 * 3 - 1, b"#") + b"\n" + (tmp_path / "own.ts").read_bytes())
    frames, result = decode(path, StoreSpec(10, SIDE), DECODERS)
    assert (numbers(frames), result.decoder) == (list(range(10, 20)), "pyav")
    with pytest.raises(UndecodableError, match=r"^decord: neither mp4 nor Matroska"):
        decode_decord(path, SIDE, np.arange(4.0), np.arange(4))


def test_a_name_is_a_file_and_nothing_else(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a protocol of FFmpeg's and not the pattern of a sequence of images, for either decoder."""
    monkeypatch.chdir(tmp_path)
    for name in (f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}", "http://127.0.0.1:1/a.mp4", "pipe:0"):
        for decoders in (DECODERS, ("pyav",)):
            with pytest.raises(UndecodableError, match="No such file"):
                decode(Path(name), SPEC, decoders)
    ffmpeg("-i", secret, tmp_path / "frame%02d.png")
    with pytest.raises(UndecodableError):
        decode(Path("frame%02d.png"), SPEC, DECODERS)
    for name in ("concat:a|b.mp4", "100%d.mp4", "file:a.mp4", "-i.mp4"):
        Path(name).write_bytes(secret.read_bytes())
        for decoders in (DECODERS, ("decord",), ("pyav",)):
            assert numbers(decode(Path(name), SPEC, decoders)[0]) == [0, 1, 2, 3]


def in_a_worker(function: Callable[..., object], *arguments: object, file_bytes: int = 0) -> object:
    with create_pool(DecodeLimits(workers=1), 1, file_bytes) as pool:
        return pool.schedule(function, arguments).result(timeout=60)


def test_a_decoding_process_writes_no_large_file_and_no_core_dump(tmp_path: Path) -> None:
    assert in_a_worker(resource.getrlimit, resource.RLIMIT_CORE) == (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    path, content = tmp_path / "large", bytes(2**21)
    with pytest.raises(OSError, match="File too large"):
        in_a_worker(Path.write_bytes, path, content)
    assert in_a_worker(Path.write_bytes, path, content, file_bytes=2**21) == len(content)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_a_decoding_process_gains_no_rights_and_has_no_network() -> None:
    status = str(in_a_worker(Path.read_text, Path("/proc/self/status")))
    assert "NoNewPrivs:\t1" in status
    interfaces = str(in_a_worker(Path.read_text, Path("/proc/thread-self/net/dev"))).splitlines()[2:]
    if len(interfaces) > 1:
        pytest.skip("this system lets no process go without the network")
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match="unreachable"):
        in_a_worker(socket.create_connection, server.getsockname(), 1)


def test_a_confined_process_still_decodes(secret: Path) -> None:
    frames, result = in_a_worker(decode, secret, SPEC, DECODERS)  # type: ignore[misc]
    assert numbers(np.asarray(frames)) == [0, 1, 2, 3]
    assert (result.status, result.decoder) == ("ok", "decord")
