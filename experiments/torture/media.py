"""Damaged videos of 26 codecs and containers, through both ways of decoding: what becomes of them, and is `ok` true?

python experiments/torture/media.py --count 10000

Exit code 1 where a video hangs or ends in a traceback, where one that the ffmpeg command reports damage for is ok, or
where the frames of one that is ok are not those that the ffmpeg command decodes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from vidcls.data.decoding.plan import WindowPlan
from vidcls.data.decoding.pool import decode_into_store, read_windows
from vidcls.data.decoding.receiver import VideoFinished
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.decoding.track import scan
from vidcls.data.decoding.worker import Source
from vidcls.data.file_hashes import hash_files
from vidcls.data.options import DecodeLimits
from vidcls.data.sampling import StoreSpec, clip_indices
from vidcls.data.store import FrameStore

FORMATS = {  # of the copies, by their suffix: the codec and its options
    "mp4": ("libx264", "-bf", "2"),
    "fragmented.mp4": ("libx264", "-movflags", "frag_keyframe+empty_moov"),
    "hevc.mp4": ("libx265", "-x265-params", "log-level=none:pools=1"),
    "mpeg4.mp4": ("mpeg4",),
    "av1.mp4": ("libaom-av1", "-cpu-used", "8"),
    "vp9.mp4": ("libvpx-vp9", "-cpu-used", "8"),
    "mov": ("mjpeg", "-pix_fmt", "yuvj420p"),
    "prores.mov": ("prores", "-pix_fmt", "yuv422p10le"),
    "png.mov": ("png", "-pix_fmt", "rgb24"),
    "mkv": ("libx264",),
    "hevc.mkv": ("libx265", "-x265-params", "log-level=none:pools=1"),
    "ffv1.mkv": ("ffv1",),
    "theora.mkv": ("libtheora",),
    "webm": ("libvpx-vp9", "-cpu-used", "8"),
    "vp8.webm": ("libvpx",),
    "av1.webm": ("libaom-av1", "-cpu-used", "8"),
    "avi": ("mpeg4",),
    "mjpeg.avi": ("mjpeg", "-pix_fmt", "yuvj420p"),
    "h264.avi": ("libx264", "-bf", "0"),
    "ts": ("libx264",),
    "hevc.ts": ("libx265", "-x265-params", "log-level=none:pools=1"),
    "mpeg2.ts": ("mpeg2video", "-r", "25"),
    "mpg": ("mpeg2video", "-r", "25"),
    "flv": ("flv",),
    "h264.flv": ("libx264",),
    "wmv": ("wmv2",),
}
FRAMES, HEIGHT, WIDTH, SIDE = 24, 48, 64, 32
SPEC = StoreSpec(4, SIDE)
MEAN_DIFFERENCE = 3.0  # of 255: two versions of FFmpeg's scaler round differently
INTERNAL = ("NoneType", "attribute", "operand", "Traceback")  # words that a reason never has


def write_originals(folder: Path, variants: int = 1) -> list[Path]:
    """Videos of a moving square in each of `FORMATS`; the ``variants`` of a format differ in brightness."""
    return [path for variant in range(variants) for path in _write_variant(folder, variant)]


def _write_variant(folder: Path, variant: int) -> list[Path]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    background = np.stack([rows * 4, columns * 3, rows + columns], axis=-1).astype(np.uint8)
    frames = np.repeat(background[None], FRAMES, axis=0)
    for time_step, frame in enumerate(frames):
        frame[8:24, 2 * time_step : 2 * time_step + 12] = (255 - variant, 255 - 9 * time_step, 9 * time_step)
    size = f"{WIDTH}x{HEIGHT}"
    for suffix, (codec, *options) in FORMATS.items():
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "12", "-i", "-"]
        path = str(folder / f"{variant}.{suffix}")
        encoder = ["-c:v", codec, "-g", "8", "-pix_fmt", "yuv420p", *options]
        _, errors = _ffmpeg([*source, *encoder, path], frames.tobytes())
        assert not errors, errors
    return [folder / f"{variant}.{suffix}" for suffix in FORMATS]


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """Overwrites, flips, removes, repeats or cuts bytes, mostly in the headers at either end."""
    data = np.frombuffer(content, np.uint8).copy()
    for _ in range(generator.integers(1, 4)):
        length = int(generator.integers(1, 64))
        limit = max(len(data) - length, 1)
        start = int(generator.integers(limit))
        if generator.random() < 0.6:
            start = start % 1500 if generator.random() < 0.5 else max(limit - 1 - start % 900, 0)
        how = generator.integers(5)
        if how == 0:
            data[start : start + length] = generator.integers(0, 256, len(data[start : start + length]))
        elif how == 1:
            data[start] ^= 1 << generator.integers(8)
        elif how == 2:
            data = np.delete(data, slice(start, start + length))
        elif how == 3:
            data = np.insert(data, start, data[start : start + length])
        else:
            data[start : start + 4] = generator.choice([0, 255])
    return data[: generator.integers(len(data))].tobytes() if generator.random() < 0.1 else data.tobytes()


def write_damaged(originals: Sequence[Path], folder: Path, numbers: Sequence[int], seed: int) -> list[Path]:
    """The damaged copies ``numbers``; each is a function of its number and the seed alone."""
    files = []
    for number in numbers:
        original = originals[number % len(originals)]
        files.append(folder / f"{number:05}.{original.name.partition('.')[2]}")
        files[-1].write_bytes(mutate(original.read_bytes(), np.random.default_rng([seed, number])))
    return files


def decode_both_ways(
    files: Sequence[Path], store: FrameStore, limits: DecodeLimits
) -> tuple[list[str], list[DecodeResult], list[DecodeResult]]:
    """The content hashes of the files, and the results of decoding them whole into the store and in windows."""
    hashes = hash_files(files, None)
    whole = dict(decode_into_store(zip(files, hashes, strict=True), len(files), store, limits))
    plan = WindowPlan(SPEC, 0.5, 0.25, 0.0, max_windows=50)
    windows: dict[int, DecodeResult] = {}
    videos = [Source(file, hashed.state) for file, hashed in zip(files, hashes, strict=True)]
    for event in read_windows(videos, len(videos), plan, limits):
        if isinstance(event, VideoFinished):
            windows[event.number] = event.result
    order = range(len(files))
    return (
        [hashed.sha256 for hashed in hashes],
        [whole[number] for number in order],
        [windows[number] for number in order],
    )


def compare(file: Path, frames: np.ndarray, original: np.ndarray) -> tuple[str, str]:
    """Holds the chosen frames of a video that is ``ok`` against ffmpeg's: what is counted, and what is wrong.

    ffmpeg leaves out frames that it reports damage for, and lost ones without a word: a chosen frame may be one of the
    frames before its own by as many as are missing. Where it reports damage, the ``original`` video's frames count too.
    """
    track, starts, *_ = scan(file)
    chosen = clip_indices(starts, track.end_seconds, SPEC)
    raw, errors = _ffmpeg([*_source(file), "-"])
    shown = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)
    lost = len(starts) - len(shown)
    worst = 0.0
    for index, frame in zip(chosen, frames, strict=True):
        known = shown[max(index - max(lost, 0), 0) : index + 1]
        known = np.concatenate([known, original]) if errors else known
        upright = [np.rot90(side, turns, axes=(1, 2)) for turns in range(4) for side in (known, known[:, :, ::-1])]
        worst = max(worst, min(_differences(view, frame).min(initial=255) for view in upright))
    wrong = f"frames differ by {worst:.1f} of 255 {errors}" if worst > MEAN_DIFFERENCE else ""
    return "ffmpeg reports damage of other frames" if errors else "ffmpeg agrees", wrong


def _source(file: Path) -> list[str]:
    scale = f"scale={SIDE}:{SIDE}:flags=bilinear"
    passed = ["-map", "0:v:0", "-fps_mode", "passthrough", "-vf", scale, "-pix_fmt", "rgb24", "-f", "rawvideo"]
    careful = ["-threads", "1", "-noautorotate", "-err_detect", "explode", "-flags", "-output_corrupt"]
    return [*careful, "-i", str(file), *passed]


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # Mean absolute differences [N] of frames.
    return np.abs(first.astype(np.int16) - second.astype(np.int16)).mean(axis=(1, 2, 3))


def _ffmpeg(arguments: Sequence[str], given: bytes = b"") -> tuple[bytes, str]:
    # What ffmpeg writes, and the errors that it reports.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, timeout=60)
    errors = " ".join(done.stderr.decode(errors="replace").split())[:200]
    return done.stdout, errors or ("" if done.returncode == 0 else str(done.returncode))


def check(
    files: Sequence[Path], originals: Sequence[Path], folder: Path, limits: DecodeLimits
) -> Iterator[tuple[str, str]]:
    """For each file: what is counted, and what is wrong with it (empty if nothing)."""
    store = FrameStore(folder / "store", SPEC)
    hashes, whole, windows = decode_both_ways(files, store, limits)
    for file, original, sha256, *results in zip(files, originals, hashes, whole, windows, strict=True):
        for way, result in zip(("whole", "windows"), results, strict=True):
            wrong = "no reason" if bool(result.reason) == (result.status == "ok") else ""
            if any(word in result.reason for word in INTERNAL) or "within" in result.reason:
                wrong = result.reason
            yield f"{way}: {result.status}", wrong and f"{file.name} {way}: {wrong}"
        if results[0].status == "ok":
            intact = np.frombuffer(_ffmpeg([*_source(original), "-"])[0], np.uint8).reshape(-1, SIDE, SIDE, 3)
            counted, wrong = compare(file, store.read(sha256, np.arange(SPEC.stored_frames)), intact)
            yield f"whole: ok, {counted}" + ", BUT" * bool(wrong), wrong and f"{file.name}: {wrong}"


def main() -> int:
    """Damages ``count`` files and records what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the files that something is wrong with")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("media.json"))
    options = parser.parse_args()
    limits = DecodeLimits(workers=options.workers, timeout_seconds=20)
    counts, wrong, seconds = Counter[str](), list[str](), dict.fromkeys(("intact", "damaged"), 0.0)
    with tempfile.TemporaryDirectory(prefix="media") as name:
        originals = write_originals(Path(name), variants=20)
        for first in range(0, options.count, len(originals)):
            numbers = range(first, min(first + len(originals), options.count))
            with tempfile.TemporaryDirectory(dir=name) as batch_name:
                batch = Path(batch_name)
                files = write_damaged(originals, batch, numbers, options.seed)
                for kind, timed in (("intact", originals[: len(numbers)]), ("damaged", files)):
                    started = time.perf_counter()
                    decode_both_ways(timed, FrameStore(batch / kind, SPEC), limits)
                    seconds[kind] += time.perf_counter() - started
                for counted, problem in check(
                    files, [originals[number % len(originals)] for number in numbers], batch, limits
                ):
                    counts[counted] += 1
                    if problem:
                        wrong.append(problem)
                        if options.keep:
                            options.keep.mkdir(parents=True, exist_ok=True)
                            shutil.copy(batch / problem.split(":")[0].split()[0], options.keep)
            print(f"{numbers[-1] + 1} files: {dict(sorted(counts.items()))}, {len(wrong)} wrong", flush=True)
    rates = {f"{kind}_files_per_second": round(options.count / spent, 1) for kind, spent in seconds.items()}
    result = {"count": options.count, "seed": options.seed, "formats": len(FORMATS), **rates}
    result |= {"outcomes": dict(sorted(counts.items())), "wrong": wrong}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
