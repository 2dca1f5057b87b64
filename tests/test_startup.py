"""Mistakes show before torch is imported, and each command imports no more than it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers.commands import ROOT
from helpers.videos import write_video

HEAVY = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "sklearn", "matplotlib")
PROGRAM = """
import contextlib, io, json, os, runpy, sys, time
from helpers.conf_files import parse_once
parse_once()  # which takes half of the time of all these calls
results = []
for arguments in json.loads(sys.argv[1]):
    sys.path[0] = os.path.dirname(arguments[0])  # as python itself does
    sys.argv, stderr, code, started = arguments, io.StringIO(), 0, time.monotonic()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
    seconds, modules = time.monotonic() - started, [name for name in sys.modules if "." not in name]
    results.append([code, stderr.getvalue(), seconds, modules])
print(json.dumps(results))
"""


def run_all(calls: list[list[str]], folder: Path) -> list[tuple[int, str, float, set[str]]]:
    """Calls of entry points in one new process: their exit codes, stderr and seconds, and what it has then imported."""
    arguments = json.dumps([[str(ROOT / script), *overrides] for script, *overrides in calls])
    command = [sys.executable, "-c", PROGRAM, arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [(code, stderr, seconds, set(modules)) for code, stderr, seconds, modules in json.loads(done.stdout)]


TRAIN = {
    "data=folder data.source=nowhere": "missing-source",
    "model.dropout=2": "model.dropout",
    "data.num_frames=0": "data.num_frames",
    "data=folder data.source={demo} data.decisions=nowhere": "bad-decisions",
    "data.disagreement=vote": "data.disagreement",
    "data=folder data.source={demo} data.classes=[safe,unheard_of]": "data.classes",
    "resume=nowhere": "nothing-to-resume",
    "model._target_=vidcls.models.classifiers.cnn_lstmm": "model._target_",
    "optim._target_=torch.optim.Adamm": "optim._target_",
    "model=encoder_head model.encoder.name=torchvision/resnet19": "model.encoder.name",
}
EVALUATE = {
    "": "missing-option",
    "run=nowhere": "run",
    "run={run} split=tests": "split",
    "run={run} accelerator=gpus": "accelerator",
    "run={run} data.source=nowhere": "missing-source",
    "run={run} policy.target.unheard_of.recall=0.9": "policy.target",
    "run={run} policy.target.harmful.recall=2": "policy.target.harmful.recall",
}
PREDICT = {
    "": "missing-option",
    "run=nowhere input={video} output=out": "run",
    "run={run} input=nowhere output=out": "input",
    "run={run} input={video} output={video}": "output",
    "run={run} input={video} output=out predict.top_k=0": "predict.top_k",
    "run={run} input={video} output=out accelerator=gpus": "accelerator",
}
SELECT_VIDEOS = {
    "run=nowhere input={video}": "run",
    "run={run} input={video} count=0": "count",
    "run={run} input={video} random_share=0.7": "random_share",
    "run={run} input={video} decisions=nowhere": "bad-decisions",
}
EXPORT = {
    "": "missing-option",
    "run=nowhere": "run",
    "run={run} format=tflite": "format",
    "run={run} accelerator=gpus": "accelerator",
}
REPORT = {"sweep=nowhere": "no-sweep"}
INSPECT_DATA = {
    "data=folder": "missing-option",
    "data=folder data.source=nowhere": "missing-source",
    "data.resolution=0": "data.resolution",
    "seed=-1": "seed",
    "output={video}": "output",
    "run=nowhere": "run",
    "run={run} data.resolution=32": "run-overrides",
}
CROSS_VALIDATE = {
    "data=folder": "missing-option",
    "data=folder data.source=nowhere": "missing-source",
    "model.dropout=2": "model.dropout",
    "folds=1": "folds",
    "repeats=0": "repeats",
    "seeds=3": "seeds",
    "seeds=[1,1]": "seeds",
    "seed=1": "reserved-override",
    "data.num_frames=4,8": "reserved-override",
    "splits=[test]": "splits",
    "protocol=stratified": "protocol",
    "data.split.val_fraction=0": "data.split.val_fraction",
}
CASES = {
    "train": TRAIN,
    "cross_validate": CROSS_VALIDATE,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "select_videos": SELECT_VIDEOS,
    "export": EXPORT,
    "report": REPORT,
    "inspect_data": INSPECT_DATA,
    "pack_cache": {"cache_dir=nowhere": "cache_dir"},
}


def test_mistakes_show_before_torch_is_imported(finished: Path, demo_folder: Path, tmp_path: Path) -> None:
    """In one process, which has imported what the first ones of the commands need: the others take less."""
    shown = {"run": finished, "demo": demo_folder, "video": next(demo_folder.rglob("*.mp4"))}
    calls = {(name, text): code for name, cases in CASES.items() for text, code in cases.items()}
    results = run_all([[f"{name}.py", *text.format(**shown).split()] for name, text in calls], tmp_path)
    for (call, code), (exit_code, stderr, seconds, modules) in zip(calls.items(), results, strict=True):
        assert exit_code == 2 and stderr.startswith("error: expected "), f"{call}: {stderr}"
        assert stderr.endswith(f"[{code}]\n"), f"{call}: {stderr}"
        assert not modules & set(HEAVY), call
        assert seconds < 20, call  # 2 or 3 where nothing else runs


def test_the_package_is_imported_in_no_time() -> None:
    program = "import sys, time; start = time.monotonic(); import vidcls; print(time.monotonic() - start, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    assert not {"numpy", "pandas", "hydra", *HEAVY} & set(modules)
    assert float(seconds) < 5  # 0.5 where nothing else runs


def test_a_finished_run_is_used_without_the_libraries_of_training(finished: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8))
    calls = {
        "predict.py": [f"run={finished}", f"input={video}", "output=out"],
        "export.py": [f"run={finished}", "output=model.pt2", "format=torch_export"],
    }
    results = run_all([[script, *overrides] for script, overrides in calls.items()], tmp_path)
    assert [code for code, *_ in results] == [0, 0], results
    *_, modules = results[-1]
    unneeded = {"lightning", "torchmetrics", "torchvision", "timm", "sklearn", "matplotlib"}
    assert not modules & unneeded, modules & unneeded
