"""export.py end to end: files that run without this package, agree with the run's own predictions, or are refused."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import ROOT, call, once, train
from helpers.runs import CLASSES, refused
from helpers.videos import ffmpeg, write_video

from vidcls.data.store import FrameStore
from vidcls.exporters import (
    export_run,
    resize,
)
from vidcls.prediction.loading import load_run

# After an export to ONNX torch warns of a missing symbol at the next .pt2 in the same process, which is harmless here.
logging.getLogger("torch._export.serde.serialize").setLevel(logging.ERROR)

SETTINGS = {"num_frames": "4", "resolution": "16", "sampling": "uniform"}


def run_python(code: str, *arguments: object, without: tuple[str, ...], cwd: Path) -> str:
    """Runs a few lines in a process of its own, which has ``arguments`` and cannot import what is in ``without``."""
    return run_each(code, [arguments], without, cwd)


def run_each(code: str, calls: Sequence[Sequence[object]], without: tuple[str, ...], cwd: Path) -> str:
    """The same with other arguments again and again."""
    program = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"  # None there: ModuleNotFoundError
    for arguments in calls:
        program += f"sys.argv[1:] = {[*map(str, arguments)]!r}\nexec({code!r}, {{}})\n"
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def export(*overrides: str) -> list[str]:
    """`python export.py OVERRIDES`, which must succeed; the lines it printed."""
    result = call("export.py", *overrides)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="session")
def exported(shared: Path, finished: Path, tiny: list[str]) -> Path:
    """A folder with two finished runs, exported: lstm/ (to both formats) and mean/ (stored larger than used)."""

    def run(folder: Path) -> None:
        shutil.copytree(finished, folder / "lstm")
        larger = [
            "data.store.num_frames=8",
            "data.store.resolution=24",
            "normalise.mean=[0.5,0.4,0.3]",
            "figures=false",
        ]
        options = [text for text in tiny if "lstm" not in text and "epochs" not in text]
        result = train(*options, *larger, "model=cnn_mean", "trainer.max_epochs=1", f"run_dir={folder / 'mean'}")
        assert result.code == 0, result.stderr
        lines = export(f"run={folder / 'lstm'}")
        lines += export(f"run={folder / 'lstm'}", "format=torch_export")
        lines += export(f"run={folder / 'mean'}")
        (folder / "printed.txt").write_text("\n".join(lines))

    return once(shared, "exported", run)


def held_out_clips(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The stored frames of a run's test videos at its resolution, and the predictions of the run's test."""
    loaded = load_run(run)
    store = FrameStore(Path(loaded.config.cache_dir, "store"), loaded.spec.store)
    manifest = pd.read_csv(run / "manifest.csv", keep_default_na=False)
    step = store.spec.stored_frames // 4
    indices = np.arange(4) * step + step // 2
    frames = np.stack([store.read(sha256, indices) for sha256 in manifest.loc[manifest["split"] == "test", "sha256"]])
    probabilities = pd.read_csv(run / "predictions_test.csv")[CLASSES].to_numpy()
    return resize(frames, 16), probabilities


# numpy and onnxruntime alone: in batches of 1, of 5 (repeating clips) and of all.
WITH_ONNXRUNTIME = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
frames = np.load(sys.argv[2])
one, five = frames[:1], np.resize(frames, (5, *frames.shape[1:]))
print(json.dumps({
    "metadata": session.get_modelmeta().custom_metadata_map,
    "inputs": [[item.name, item.type, item.shape] for item in session.get_inputs()],
    "outputs": [[item.name, item.type, item.shape] for item in session.get_outputs()],
    "probabilities": [session.run(None, {"frames": batch})[0].tolist() for batch in (one, five, frames)],
}))
"""
WITH_TORCH = """
import json, sys
import numpy as np, torch
files = {"vidcls.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
frames = np.load(sys.argv[2])
batches = (frames[:1], np.resize(frames, (5, *frames.shape[1:])), frames)
print(json.dumps({
    "metadata": json.loads(files["vidcls.json"]),
    "probabilities": [program(torch.from_numpy(batch)).tolist() for batch in batches],
}))
"""


@pytest.mark.parametrize(
    ("run", "file", "code"),
    [
        ("lstm", "model.onnx", WITH_ONNXRUNTIME),
        ("lstm", "model.pt2", WITH_TORCH),
        ("mean", "model.onnx", WITH_ONNXRUNTIME),
    ],
)
def test_it_runs_without_the_package_and_predicts_what_the_test_did(
    exported: Path, tmp_path: Path, run: str, file: str, code: str
) -> None:
    folder = exported / run
    frames, expected = held_out_clips(folder)
    np.save(tmp_path / "frames.npy", frames)
    without = ("vidcls", "torch") if file.endswith(".onnx") else ("vidcls",)
    files = folder / "export" / file, tmp_path / "frames.npy"
    answer = json.loads(run_python(code, *files, without=without, cwd=tmp_path))
    one, five, everything = (np.array(part) for part in answer["probabilities"])
    np.testing.assert_allclose(everything, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(five, np.resize(expected, (5, 3)), rtol=0, atol=1e-5)
    assert np.ptp(everything, axis=0).max() > 1e-4  # the clips matter
    sha256 = hashlib.sha256((folder / "checkpoints" / "best.ckpt").read_bytes()).hexdigest()
    assert json.loads(answer["metadata"]["classes"]) == CLASSES
    assert answer["metadata"].items() >= (SETTINGS | {"checkpoint_sha256": sha256}).items()
    stored = {"lstm": ("4", "16"), "mean": ("8", "24")}[run]
    assert (answer["metadata"]["store_num_frames"], answer["metadata"]["store_resolution"]) == stored
    if "inputs" in answer:
        assert answer["inputs"] == [["frames", "tensor(uint8)", ["batch", 4, 16, 16, 3]]]
        assert answer["outputs"] == [["probabilities", "tensor(float)", ["batch", 3]]]


def test_what_is_kept_out_of_these_processes_stays_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        run_python("import vidcls.exporters", without=("vidcls",), cwd=ROOT)


def snippet() -> str:
    """The code in docs/export.md that classifies a video without this package."""
    pattern = r"<!-- onnx -->\s*```python\n(.*?)```\s*<!-- onnx -->"
    (found,) = re.findall(pattern, (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    return str(found)


@pytest.mark.parametrize("name", ["lstm", "mean"])
def test_the_documented_snippet_runs_as_it_stands(name: str, exported: Path, demo_folder: Path, tmp_path: Path) -> None:
    """Also for a run that stores more and larger frames than it uses, as those of a sweep do."""
    run = exported / name
    rows = pd.read_csv(run / "predictions_test.csv").head(1)
    for row in rows.to_dict("records"):
        arguments = (run / "export" / "model.onnx", demo_folder / row["path"])
        answer = json.loads(run_python(snippet(), *arguments, without=("vidcls", "torch"), cwd=tmp_path))
        assert answer == pytest.approx({name: row[name] for name in CLASSES}, abs=1e-5)


def test_the_documented_snippet_agrees_with_predict_on_awkward_files(exported: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    noise[20:] //= 4  # frame 19 stays on screen for long in vfr.mp4
    videos = [write_video(tmp_path / f"turned_{turn}.mp4", noise, rotation=turn) for turn in (90, 180, 270)]
    videos += [write_video(tmp_path / f"mirrored_{turn}.mp4", noise, rotation=turn, mirrored=True) for turn in (0, 90)]
    times = [40 * n if n < 20 else 1300 + 10 * n for n in range(40)]
    videos += [write_video(tmp_path / "vfr.mp4", noise, pts=times), write_video(tmp_path / "one_frame.mp4", noise[:1])]
    videos.append(write_video(tmp_path / "no_durations.flv", noise, codec="flv"))
    videos.append(tmp_path / "interlaced.mp4")
    ffmpeg("-i", tmp_path / "vfr.mp4", "-c:v", "libx264", "-flags", "+ilme+ildct", "-field_order", "tt", videos[-1])
    run = load_run(exported / "lstm")
    calls = [(exported / "lstm" / "export" / "model.onnx", video) for video in videos]
    answers = run_each(snippet(), calls, ("vidcls", "torch"), tmp_path).splitlines()
    for video, answer in zip(videos, answers, strict=True):
        assert json.loads(answer) == pytest.approx(run.predict(video), abs=1e-5), video.name


def test_the_documented_snippet_refuses_what_it_would_get_wrong(exported: Path, tmp_path: Path) -> None:
    """A long video, which predict.py classifies in windows, a damaged one, and what is no video."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    long, damaged = write_video(tmp_path / "long.mp4", noise, fps=1), write_video(tmp_path / "damaged.ts", noise)
    damaged.write_bytes(damaged.read_bytes()[:-3000])
    ffmpeg("-i", long, "-f", "gif", tmp_path / "picture.mp4")
    for video, word in ((long, "windows"), (damaged, "damage"), (tmp_path / "picture.mp4", "ArgumentError")):
        with pytest.raises(AssertionError, match=word):
            arguments = (exported / "lstm" / "export" / "model.onnx", video)
            run_python(snippet(), *arguments, without=("vidcls", "torch"), cwd=tmp_path)


def test_it_prints_the_parity_and_leaves_one_file_each(exported: Path) -> None:
    lines = (exported / "printed.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["Parity:", "Wrote"] * 3
    rows = pd.read_csv(exported / "lstm" / "manifest.csv", keep_default_na=False)
    held_out = rows["split"].isin(["test", "val"]).sum()
    for line in lines[::2]:
        assert line.startswith("Parity: max abs difference ") and line.endswith(f" over {min(held_out, 16)} clips")
        assert float(line.split()[4]) <= 1e-5
    assert {path.name for path in (exported / "lstm" / "export").iterdir()} == {"model.onnx", "model.pt2"}
    assert {path.name for path in (exported / "mean" / "export").iterdir()} == {"model.onnx"}


def test_nothing_else_is_written(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(exported.rglob("*"))
    lines = export(f"run={exported / 'lstm'}", "format=torch_export", "output=a/b.pt2")
    assert lines[-1] == "Wrote a/b.pt2"
    assert {path.as_posix() for path in Path().rglob("*")} == {"mine.txt", "a", "a/b.pt2"}
    assert sorted(exported.rglob("*")) == before


def test_a_run_of_another_precision_warns_that_its_export_computes_in_float32(exported: Path, tmp_path: Path) -> None:
    run = load_run(exported / "lstm")
    run.config.trainer.precision = "bf16-mixed"
    with pytest.warns(UserWarning, match="computes in float32, the run in bf16-mixed"):
        export_run(run, "torch_export", tmp_path / "model.pt2", None)


# ---- what is refused


def refused_export(code: str, *overrides: str) -> None:
    result = call("export.py", *overrides)
    assert result.stdout == ""
    refused(result, f"[{code}]")


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one's own to break; the working directory lies beside it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_checkpoint_that_is_none(copied: Path) -> None:
    (copied / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    refused_export("bad-checkpoint", "run=run")


def test_a_store_without_the_runs_videos(copied: Path) -> None:
    refused_export("no-stored-videos", "run=run", "cache_dir=empty")
    assert not (copied / "export").exists() and not Path("empty").exists()


def test_an_output_that_is_a_folder(copied: Path) -> None:
    Path("taken").mkdir()
    refused_export("output", "run=run", "format=torch_export", "output=taken")
    assert {path.name for path in Path().iterdir()} == {"run", "taken"}
