"""Sweeps: one folder, one decode, no test set; failures are recorded, and a sweep that was stopped goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import CONF, TRAIN, call, once, start_train, train
from helpers.runs import metrics_of, refused, table, wait_until
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vidcls.cli import new_run_dir
from vidcls.metrics.objectives import LOWER_IS_BETTER
from vidcls.sweeps.jobs import Sweep, _parse, _shared_store, job_name

SWEPT = ["data.num_frames=2,4", "model.lstm.hidden_size=4,-1", "trainer.max_epochs=2"]
DONE = ["num_frames=2,hidden_size=4", "num_frames=4,hidden_size=4"]
FAILED = ["num_frames=2,hidden_size=-1", "num_frames=4,hidden_size=-1"]


@pytest.fixture(scope="session")
def base(tiny: list[str]) -> list[str]:
    """A tiny run's overrides without those that the sweeps here vary."""
    varied = ("data.num_frames", "model.lstm", "trainer.max_epochs", "cache_dir")
    return [text for text in tiny if not text.startswith(varied)]


@pytest.fixture(scope="session")
def command(base: list[str], shared: Path) -> list[str]:
    return ["-m", *base, f"cache_dir={shared / 'sweep_cache'}", *SWEPT]


@pytest.fixture(scope="session")
def sweep(shared: Path, command: list[str]) -> Path:
    """The folder of a sweep whose cache was empty: two jobs are done, two cannot be. Read only."""

    def run(folder: Path) -> None:
        result = train(*command, f"hydra.sweep.dir={folder}")
        assert result.code == 1, result.stderr
        folder.with_suffix(".out").write_text(result.stdout)
        folder.with_suffix(".err").write_text(result.stderr)

    return once(shared, "sweep", run)


@pytest.fixture
def copied(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "copied"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with when it was written and what is in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---- what a sweep leaves behind


def test_the_folder_of_a_sweep(sweep: Path, command: list[str]) -> None:
    assert {path.name for path in sweep.iterdir()} == {"sweep.json", "multirun.yaml", *DONE, *FAILED}
    record = read(sweep / "sweep.json")
    assert list(record) == ["format", "overrides", "swept", "objective", "planned"]
    assert record["overrides"] == command[1:]
    assert record["swept"] == ["data.num_frames", "model.lstm.hidden_size"]
    assert (record["format"], record["objective"], record["planned"]) == (1, "accuracy", 4)


@pytest.mark.parametrize("name", [*DONE, *FAILED])
def test_each_job_says_what_it_was_told(sweep: Path, name: str) -> None:
    job = read(sweep / name / "job.json")
    frames, size = (int(text.partition("=")[2]) for text in name.split(","))
    assert job["knobs"] == {"data.num_frames": frames, "model.lstm.hidden_size": size}
    assert {f"data.num_frames={frames}", f"model.lstm.hidden_size={size}", "data=folder"} < set(job["overrides"])
    assert "test=false" not in job["overrides"] and not [o for o in job["overrides"] if o.startswith("run_dir")]


@pytest.mark.parametrize("name", DONE)
def test_a_job_is_a_run_that_has_not_seen_the_test_set(sweep: Path, name: str) -> None:
    job = sweep / name
    metrics = metrics_of(job)
    assert metrics["train"] is None and metrics["test"] is None and metrics["val"]["n"] == 3
    assert not list(job.glob("**/*test*"))
    assert {"config.yaml", "environment.json", "manifest.csv", "history.csv", "predictions_val.csv"} < {
        path.name for path in job.iterdir()
    }
    assert not (job / "error.txt").exists() and (job / "checkpoints" / "best.ckpt").exists()
    assert list(table(job / "history.csv")["epoch"]) == [1, 2]
    config = OmegaConf.load(job / "config.yaml")
    assert config.run_dir == str(job) and config.test is False


def test_videos_are_decoded_once_for_all_jobs(sweep: Path, shared: Path) -> None:
    decoded = [metrics_of(sweep / name)["timing"]["videos_decoded"] for name in DONE]
    assert decoded == [12, 0]  # one after the other
    (store,) = (shared / "sweep_cache" / "store").iterdir()
    assert store.name.startswith("uniform_4x16px")
    assert len(list(store.rglob("*.safetensors"))) == 12
    assert "which share one decode (data.store.num_frames=4)" in sweep.with_suffix(".out").read_text()


def test_a_job_that_fails_says_why_and_the_others_go_on(sweep: Path) -> None:
    stdout, stderr = (sweep.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
    assert f"2 of 4 jobs done: {sweep}" in stdout
    for name in FAILED:
        reason = (sweep / name / "error.txt").read_text().strip()
        assert reason == "expected model.lstm.hidden_size to be an integer >= 1; got -1. " + (
            "Set model.lstm.hidden_size=1 or more."
        )
        assert f"failed: {name}: {reason}" in stdout and f"{name}: failed: {reason}" in stderr
        assert not (sweep / name / "metrics.json").exists()
    assert f"2 jobs failed; the same command with sweep.resume={sweep} tries them again" in stdout
    assert "Traceback" not in stderr


def test_a_bug_is_a_failed_job_too(base: list[str], tmp_path: Path, shared: Path) -> None:
    kinds = ["trainer.precision=nonsense,32-true", "trainer.max_epochs=1", f"cache_dir={shared / 'cache'}"]
    result = train("-m", *base, *kinds, "data.num_frames=4", f"hydra.sweep.dir={tmp_path}")
    assert result.code == 1
    assert (tmp_path / "precision=32-true" / "metrics.json").exists()
    lines = (tmp_path / "precision=nonsense" / "error.txt").read_text().splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("ValueError: "), lines[-3:]
    assert "nonsense" in lines[-1]  # not Hydra's last words, which are of something else
    assert f"  failed: precision=nonsense: {lines[-1]}" in result.stdout.splitlines()


def test_a_sweep_without_failures_ends_well_and_picks_what_one_run_would(
    sweep: Path, command: list[str], tmp_path: Path
) -> None:
    """A job is the run that it would be alone; of one run nothing has changed."""
    one = ["data.num_frames=4", "model.lstm.hidden_size=4", "data.store.num_frames=4", f"run_dir={tmp_path / 'run'}"]
    varied = ("data.num_frames", "model.lstm")
    result = train(*(text for text in command[1:] if not text.startswith(varied)), *one)
    assert result.code == 0, result.stderr
    job, run = sweep / DONE[1], tmp_path / "run"
    assert metrics_of(run)["val"] == metrics_of(job)["val"] and metrics_of(run)["test"]["n"] == 3
    for name in ("history.csv", "predictions_val.csv", "manifest.csv"):
        assert (run / name).read_bytes() == (job / name).read_bytes()
    assert not (run / "job.json").exists() and not (run / ".lock").exists()


def test_the_report_and_the_one_test_of_the_winner(copied: Path) -> None:
    result = call("report.py", f"sweep={copied}")
    assert result.code == 0, result.stderr
    ranking = table(copied / "report" / "ranking.csv")
    assert set(ranking["data.num_frames"]) == {2, 4} and set(ranking["model.lstm.hidden_size"]) == {4}
    assert "Jobs: 2 done, 2 failed, 0 unfinished" in (copied / "report" / "report.md").read_text()
    for name in ("report.md", "ranking.csv", "effects.csv"):
        assert (copied / "report" / name).stat().st_size > 0
    assert not (copied / "test.json").exists()
    result = call("report.py", f"sweep={copied}", "test_best=true")
    assert result.code == 0, result.stderr
    tested = read(copied / "test.json")
    assert tested["job"] in DONE and tested["n"] == 3
    written = (copied / "test.json").stat().st_mtime_ns
    assert call("report.py", f"sweep={copied}", "test_best=true").code == 0
    assert (copied / "test.json").stat().st_mtime_ns == written
    assert all(metrics_of(copied / name)["test"] is None for name in DONE)


# ---- continued


def test_a_finished_job_is_not_run_again(copied: Path, command: list[str]) -> None:
    before = {name: contents(copied / name) for name in DONE}
    for name in FAILED:  # what was wrong has been mended since; a retry must not stop at what the first try left
        assert not (copied / name / "metrics.json").exists()
    more = ["data.num_frames=2,4", "model.lstm.hidden_size=4,-1,8"]
    result = train(*command[:-3], *more, command[-1], f"sweep.resume={copied}")
    assert result.code == 1, result.stderr
    assert {name: contents(copied / name) for name in DONE} == before
    assert [result.stdout.count(f"{name}: done before") for name in DONE] == [1, 1]
    assert [result.stdout.count(f"{name}: ") for name in FAILED] == [2, 2]  # tried, and still failing
    new = ["num_frames=2,hidden_size=8", "num_frames=4,hidden_size=8"]
    assert names(copied) == sorted([*DONE, *FAILED, *new])
    assert [metrics_of(copied / name)["timing"]["videos_decoded"] for name in new] == [0, 0]
    assert read(copied / "sweep.json")["planned"] == 6
    assert f"4 of 6 jobs done: {copied}" in result.stdout


def test_a_failed_job_that_can_run_now_runs(copied: Path, command: list[str], sweep: Path) -> None:
    """Its error.txt goes; a half-done one goes on from its last epoch."""
    (broken, half) = (copied / name for name in DONE)
    shutil.copy(copied / FAILED[0] / "error.txt", broken)
    for name in ("metrics.json", "predictions_val.csv", "config.yaml", "history.csv"):
        (broken / name).unlink()
    shutil.rmtree(broken / "checkpoints")
    (half / "metrics.json").unlink()
    trained = (half / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    result = train(*command, f"sweep.resume={copied}")
    assert result.code == 1, result.stderr
    assert f"{broken.name}: started" in result.stdout and f"{half.name}: continued" in result.stdout
    assert not (broken / "error.txt").exists()
    assert (half / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained
    for job in (broken, half):
        assert metrics_of(job)["val"] == metrics_of(sweep / job.name)["val"]
        for name in ("predictions_val.csv", "history.csv"):
            assert (job / name).read_bytes() == (sweep / job.name / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["trainer.max_epochs=3"], ["trainer.max_epochs=2", "trainer.max_epochs=3", "Only the values of swept knobs"]),
        (["seed=0,1"], ["seed=0,1"]),
        (["model.lstm.hidden_size=4"], ["model.lstm.hidden_size=4,-1"]),
        (["objective=loss"], ["objective=loss"]),
    ],
)
def test_another_command_does_not_continue_it(
    sweep: Path, command: list[str], changed: list[str], words: list[str]
) -> None:
    before = contents(sweep)
    knob = changed[0].partition("=")[0]
    others = [text for text in command if not text.startswith(f"{knob}=")]
    refused(train(*others, *changed, f"sweep.resume={sweep}"), "the command of that sweep", *words)
    assert contents(sweep) == before


def test_a_folder_that_is_no_sweep_is_not_continued(command: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(train(*command, f"sweep.resume={folder}"), "the folder of a sweep in sweep.resume", "sweep.json")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_sweep_is_not_taken(sweep: Path, command: list[str]) -> None:
    before = contents(sweep)
    refused(train(*command, f"hydra.sweep.dir={sweep}"), "no other sweep has used", f"sweep.resume={sweep}")
    assert contents(sweep) == before


# ---- refused, before anything is written


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("test=true", ["without test=", "test_best=true"]),
        ("run_dir=elsewhere", ["without run_dir="]),
        ("resume=elsewhere", ["without resume=", "sweep.resume=DIR"]),
        ("objective=nonsense", ["objective to be one of accuracy", "got nonsense"]),
    ],
)
def test_what_a_sweep_does_not_take(override: str, words: list[str], command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    refused(train(*command, override, f"hydra.sweep.dir={folder}"), *words)
    assert not folder.exists()


# ---- planned


def planned(folder: Path, *overrides: str, swept: tuple[str, ...] = ()) -> tuple[dict[str, Any], DictConfig]:
    """What a sweep would write down, and the configuration that its jobs would be made of."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, f"hydra.sweep.dir={folder}"], return_hydra_config=True)
    cfg.hydra.overrides.task += list(swept)
    Sweep()._begin(cfg)
    return read(folder / "sweep.json"), cfg


def test_the_preset_of_a_grid(tmp_path: Path) -> None:
    record, cfg = planned(tmp_path, "sweep=frames_resolution_lstm")
    assert record["planned"] == 18
    assert record["swept"] == ["data.num_frames", "data.resolution", "model.lstm.hidden_size"]
    assert {"data.store.num_frames=32", "data.store.resolution=112"} < set(
        OmegaConf.to_container(cfg.hydra.overrides.task)
    )
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert planned(tmp_path / "seeds", "sweep=frames_resolution_lstm", swept=("seed=0,1,2",))[0]["planned"] == 54


def test_the_preset_of_a_search(tmp_path: Path) -> None:
    record, cfg = planned(tmp_path, "sweep=optuna_cnn_lstm")
    assert record["planned"] is None and len(record["swept"]) == 5 and "optim.lr" in record["swept"]
    assert cfg.hydra.sweeper.direction == "maximize" and cfg.hydra.sweeper.n_trials == 20
    assert cfg.hydra.sweeper.storage == f"sqlite:///{tmp_path}/study.db"
    for objective, lower in LOWER_IS_BETTER.items():
        cfg = planned(tmp_path / objective, "sweep=optuna_cnn_lstm", f"objective={objective}")[1]
        assert cfg.hydra.sweeper.direction == ("minimize" if lower else "maximize")


def test_the_command_line_replaces_what_a_preset_sweeps(tmp_path: Path) -> None:
    """Jobs that fail at once show which ones there are."""
    nowhere = ["data=folder", "data.source=nowhere", "seed=7"]
    given = ["sweep=frames_resolution_lstm", "data.num_frames=4,8", "data.resolution=32", "seed=0"]
    result = train(*nowhere, *given, f"hydra.sweep.dir={tmp_path}")
    assert result.code == 1
    expected = [f"num_frames={frames},hidden_size={size}" for frames in (4, 8) for size in (32, 64, 128)]
    assert names(tmp_path) == sorted(expected)
    assert read(tmp_path / "sweep.json")["planned"] == 6
    assert "0 of 6 jobs done" in result.stdout and result.stdout.count(": started") == 6


def test_a_group_can_be_swept(tmp_path: Path) -> None:
    result = train("-m", "data=folder", "data.source=nowhere", "model=glob(cnn_*)", f"hydra.sweep.dir={tmp_path}")
    assert result.code == 1
    assert names(tmp_path) == ["model=cnn_lstm", "model=cnn_mean"]
    assert read(tmp_path / "model=cnn_mean" / "job.json")["knobs"] == {"model": "cnn_mean"}
    assert read(tmp_path / "sweep.json")["planned"] == 2


def test_no_job_starts_where_the_sweep_could_not_be_prepared(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs would not have been told to leave the test set alone."""
    monkeypatch.delattr("vidcls.sweeps.jobs._claim")  # a bug
    result = train("-m", *base, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert result.code == 1 and "NameError: name '_claim'" in result.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", "job"),
        ("seed=1", "seed=1"),
        ("model.lstm.hidden_size=32,seed=0", "hidden_size=32,seed=0"),
        ("a.size=1,b.size=2", "a.size=1,b.size=2"),  # the last parts are the same
        ("model=cnn_mean,optim.lr=0.001", "model=cnn_mean,lr=0.001"),
        ("optim.lr=1e-3", "lr=1e-3"),
        ("model.encoder.channels=[4,8],seed=0", "channels=_4,8_,seed=0-"),
        ("normalise.mean=[0.5,0.5,0.5]", "mean=_0.5,0.5,0.5_-"),
        ("data.source=/clips/a b", "source=_clips_a_b-"),
        ("data.source=../clips", "source=.._clips-"),
        ("+callbacks@x.y=1", "y=1"),
        (f"data.source={'x' * 300}", "source=" + "x" * 113 + "-"),
    ],
)
def test_names_of_jobs(overrides: str, name: str) -> None:
    made = job_name(overrides)
    assert made == name if not name.endswith("-") else made[:-6] == name
    assert len(made.encode()) < 255 and "/" not in made and made not in (".", "..")


def test_names_of_different_jobs_differ() -> None:
    told = ["data.source=/a/b", "data.source=/a_b", "data.source=_a_b", "data.source=" + "x" * 300]
    told += ["data.source=" + "x" * 301, "data.source=ä", "data.source=A"]
    assert len({job_name(text) for text in told}) == len(told)


@pytest.mark.parametrize(
    ("overrides", "store"),
    [
        (["data.num_frames=8,16,32"], ["data.store.num_frames=32"]),
        (["data.num_frames=6,8"], ["data.store.num_frames=24"]),  # the least of which both are divisors
        (["data.num_frames=range(2,5)"], ["data.store.num_frames=12"]),
        (["data.num_frames=choice(5,5)"], ["data.store.num_frames=5"]),
        (["data.resolution=64,112,96"], ["data.store.resolution=112"]),
        (["data.num_frames=4,8", "data.resolution=16,32"], ["data.store.num_frames=8", "data.store.resolution=32"]),
        (["data.num_frames=8"], []),
        (["seed=0,1"], []),
        (["data.num_frames=interval(2,9)"], []),
        (["data.num_frames=0,4"], ["data.store.num_frames=4"]),  # 0 is refused by its own job
        (["data.num_frames=4,x"], ["data.store.num_frames=4"]),
    ],
)
def test_the_store_that_all_jobs_share(overrides: list[str], store: list[str]) -> None:
    cfg = OmegaConf.create({"data": {"store": {"num_frames": None, "resolution": None}}})
    assert _shared_store(cfg, _parse(overrides)) == store


def test_a_store_of_ones_own_is_kept() -> None:
    cfg = OmegaConf.create({"data": {"store": {"num_frames": 64, "resolution": None}}})
    given = _parse(["data.num_frames=4,8", "data.resolution=16,32"])
    assert _shared_store(cfg, given) == ["data.store.resolution=32"]


def test_two_sweeps_of_one_second_have_two_folders() -> None:
    made = {new_run_dir("sweep", None) for _ in range(4)}
    assert len(made) == 4 and all(name.startswith("runs/sweep/") for name in made)
    assert new_run_dir("sweep", "runs/sweep/old") == "runs/sweep/old"


# ---- stopped

LONG = ["model.lstm.hidden_size=4,8", "seed=0,1", "trainer.max_epochs=12", "data.num_frames=4"]


@pytest.fixture(scope="session")
def long_command(base: list[str], shared: Path) -> list[str]:
    return ["-m", *base, f"cache_dir={shared / 'cache'}", *LONG]


@pytest.fixture(scope="session")
def unstopped(shared: Path, long_command: list[str]) -> Path:
    """The folder of a sweep of four jobs that nothing interrupted."""

    def run(folder: Path) -> None:
        result = train(*long_command, f"hydra.sweep.dir={folder}")
        assert result.code == 0, result.stderr
        assert f"4 of 4 jobs done: {folder}" in result.stdout

    return once(shared, "unstopped", run)


def half_way(folder: Path) -> bool:
    """One job is done, and the next one has trained for an epoch."""
    jobs = list(folder.glob("*/checkpoints/last.ckpt"))
    return len(jobs) >= 2 and len(list(folder.glob("*/metrics.json"))) >= 1


def assert_continues(folder: Path, command: list[str], reference: Path) -> None:
    """The rest is run, nothing twice, and the sweep is as if it had never been stopped."""
    done = {path.parent.name: contents(path.parent) for path in folder.glob("*/metrics.json")}
    assert 1 <= len(done) < 4
    result = train(*command, f"sweep.resume='{folder}'")
    assert result.code == 0, result.stderr
    assert result.stdout.count("done before") == len(done) and result.stdout.count(": continued") == 1
    assert {name: contents(folder / name) for name in done} == done
    assert names(folder) == names(reference)
    for name in names(reference):
        assert metrics_of(folder / name)["val"] == metrics_of(reference / name)["val"]
        for file in ("history.csv", "predictions_val.csv"):
            assert (folder / name / file).read_bytes() == (reference / name / file).read_bytes(), (name, file)
    tables = []
    for place in (folder, Path(shutil.copytree(reference, folder.with_name("reference")))):
        assert call("report.py", f"sweep='{place}'").code == 0
        ranking = table(place / "report" / "ranking.csv")
        tables.append(ranking.drop(columns=[c for c in ranking if any(w in c for w in ("second", "memory", "GB"))]))
    pd.testing.assert_frame_equal(*tables)


def test_kill_9_in_a_sweep(unstopped: Path, long_command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *long_command, f"hydra.sweep.dir={folder}"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: half_way(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
    assert_continues(folder, long_command, unstopped)


def test_ctrl_c_in_a_sweep(unstopped: Path, long_command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    process = start_train(*long_command, f"hydra.sweep.dir='{folder}'", cwd=tmp_path)
    wait_until(lambda: half_way(folder), process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and not list(folder.glob("*/error.txt"))
    hint = f"interrupted; go on with: the same command and sweep.resume='{folder}'"
    assert stderr.strip().splitlines()[-1] == hint
    assert_continues(folder, long_command, unstopped)
