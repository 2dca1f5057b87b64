"""How fast and in how much memory long videos are predicted on a CPU, beside ffmpeg's pure decode of the same files.

Run it with ``python experiments/long_video/speed.py`` after long_video.py, whose demo network it uses; see README.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRATCH = ROOT / "runs" / "long_video"
SIZES = {"640x360": (640, 360), "1080x1920": (1080, 1920)}
WINDOWS = (2.5, 15.0)  # seconds; the median duration of the demo videos, and of a typical short video
ROUNDS = 2
sys.path.insert(0, str(ROOT))


def ffmpeg(*arguments: str) -> None:
    """Runs ffmpeg with the threads that it chooses itself."""
    import imageio_ffmpeg

    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *arguments], check=True)


def make(name: str, size: tuple[int, int], minutes: int) -> Path:
    """A video of real clips (drawn ones, where there are none): one minute, encoded once and repeated."""
    from experiments.tools import join, real_clips

    one, target = SCRATCH / f"{name}_1min.mp4", SCRATCH / f"{name}_{minutes}min.mp4"
    if not one.exists():
        folder = real_clips() or ROOT / "data" / "demo"
        join(sorted(folder.rglob("*.mp4"))[:29], one, *size, fps=30)
    if not target.exists():
        loop = ["-stream_loop", str(minutes - 1), "-i", str(one)]
        ffmpeg(*loop, "-t", str(60 * minutes), "-c", "copy", str(target))
    return target


def decode_seconds(video: Path) -> float:
    """How long ffmpeg takes to decode ``video`` and throw it away."""
    started = time.perf_counter()
    ffmpeg("-i", str(video), "-f", "null", "-")
    return time.perf_counter() - started


def predict_seconds(video: Path, window_seconds: float) -> float:
    """How long a prediction takes, from the start of its decoding process to its last row; imports are not counted."""
    from rich.console import Console

    from vidcls.data.options import DecodeLimits, FetchLimits
    from vidcls.prediction.journal import Journal
    from vidcls.prediction.loading import load_run
    from vidcls.prediction.options import PredictOptions
    from vidcls.prediction.pipeline import predict_videos

    run = load_run(SCRATCH / "demo")
    options = PredictOptions(window_seconds=window_seconds, max_whole_seconds=4.0)
    options = options.complete(None, run.manifest)
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name, "output"), {})
        started = time.perf_counter()
        predict_videos(
            {"video": str(video)},
            run,
            "cpu",
            options,
            None,
            journal,
            DecodeLimits(),
            FetchLimits(),
            Console(quiet=True),
        )
        seconds = time.perf_counter() - started
        journal.close()
        return seconds


def peak_megabytes(video: Path) -> dict[str, float]:
    """The peak memory of predict.py and of its decoding process, by the kernel's own count."""
    import psutil

    output = SCRATCH / "memory"
    shutil.rmtree(output, ignore_errors=True)
    command = ["predict.py", f"run={SCRATCH / 'demo'}", f"input={video}", f"output={output}", "accelerator=cpu"]
    process = subprocess.Popen(
        [sys.executable, *command, "predict.window_seconds=15"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                status = Path(f"/proc/{one.pid}/status").read_text()
            except OSError:
                continue
            lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
            if lines:
                peaks[one.pid] = int(lines[0].split()[1]) / 1024
        time.sleep(0.02)
    assert process.returncode == 0
    whole = peaks.pop(process.pid)
    return {"network": round(whole, 1), "decoder": round(max(peaks.values()), 1)}


def main() -> None:
    """Writes speed.json."""
    from experiments.tools import machine

    speeds = []
    for name, size in SIZES.items():
        video = make(name, size, 10)
        for window in WINDOWS:
            theirs, ours = [], []
            for _ in range(ROUNDS):
                theirs.append(decode_seconds(video))
                ours.append(predict_seconds(video, window))
            ratio = median(mine / bare for mine, bare in zip(ours, theirs, strict=True))
            speeds.append(
                {
                    "video": name,
                    "window_seconds": window,
                    "windows": round(600 / (window / 2)) - 1,
                    "ffmpeg_seconds": [round(seconds, 2) for seconds in theirs],
                    "predict_seconds": [round(seconds, 2) for seconds in ours],
                    "video_seconds_per_second": round(600 / median(ours), 1),
                    "ratio": round(ratio, 2),
                }
            )
            print(speeds[-1], flush=True)
    memory = {f"{minutes} minutes": peak_megabytes(make("640x360", SIZES["640x360"], minutes)) for minutes in (2, 60)}
    result = {"machine": machine(), "speed": speeds, "peak_megabytes": memory}
    (HERE / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as predict.py does, before torch comes
    main()
