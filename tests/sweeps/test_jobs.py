"""Sweeps: one folder, one decode, no test set; failures are recorded, and an interrupted sweep can be continued."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import call, train
from helpers.runs import events, metrics_of, refused, table
from helpers.sweeps import DONE, FAILED, names, planned, read_json
from omegaconf import OmegaConf
from tensorboard.plugins.hparams import metadata

from vidcls.metrics import LOWER_IS_BETTER
from vidcls.sweeps.jobs import SweepCallback, job_name, parse_overrides
from vidcls.sweeps.shared import shared_store

# ---- what a sweep leaves behind


def test_the_folder_of_a_sweep(sweep: Path, command: list[str]) -> None:
    assert {path.name for path in sweep.iterdir()} == {"sweep.json", "multirun.yaml", *DONE, *FAILED}
    record = read_json(sweep / "sweep.json")
    assert " ".join(record) == "format overrides swept objective planned settings store"
    assert [text.replace("'", "") for text in record["overrides"]] == command[1:]  # paths are quoted
    assert record["swept"] == ["data.num_frames", "model.lstm.hidden_size"]
    assert (record["format"], record["objective"], record["planned"]) == (1, "accuracy", 4)


@pytest.mark.parametrize("name", [*DONE, *FAILED])
def test_each_job_records_its_overrides(sweep: Path, name: str) -> None:
    job = read_json(sweep / name / "job.json")
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
        assert reason.endswith("[model.lstm.hidden_size]")
        assert f"failed: {name}: {reason}" in stdout and f"{name}: failed: {reason}" in stderr
        assert not (sweep / name / "metrics.json").exists()
    assert f"2 jobs failed; rerun the same command with sweep.resume={sweep} to retry them" in stdout
    assert "Traceback" not in stderr


def test_a_bug_is_a_failed_job_too(base: list[str], tmp_path: Path, shared: Path) -> None:
    kinds = ["+trainer.profiler=nonsense,null", "trainer.max_epochs=1", f"cache_dir={shared / 'cache'}"]
    result = train("-m", *base, *kinds, "data.num_frames=4", f"hydra.sweep.dir={tmp_path}")
    assert result.code == 1
    assert (tmp_path / "profiler=null" / "metrics.json").exists()
    lines = (tmp_path / "profiler=nonsense" / "error.txt").read_text().splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("MisconfigurationException: "), lines[-3:]
    assert "`profiler`" in lines[-1]  # not Hydra's last words, which are of something else
    assert f"  failed: profiler=nonsense: {lines[-1]}" in result.stdout.splitlines()


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
    tested = read_json(copied / "test.json")
    assert tested["job"] in DONE and tested["n"] == 3
    written = (copied / "test.json").stat().st_mtime_ns
    assert call("report.py", f"sweep={copied}", "test_best=true").code == 0
    assert (copied / "test.json").stat().st_mtime_ns == written
    assert all(metrics_of(copied / name)["test"] is None for name in DONE)


def test_tensorboard_has_the_swept_options_and_the_history_of_a_job(sweep: Path) -> None:
    for name in DONE:
        log = events(sweep / name)
        content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        options = metadata.parse_session_start_info_plugin_data(content).hparams
        frames, size = (int(text.partition("=")[2]) for text in name.split(","))
        values = {option: value.number_value for option, value in options.items()}
        assert values == {"data.num_frames": frames, "model.lstm.hidden_size": size}
        losses = [event.value for event in log.Scalars("val/loss")]
        assert losses == pytest.approx(list(table(sweep / name / "history.csv")["val/loss"]))
        assert "best/val_accuracy" in log.Tags()["scalars"] and "best/test_accuracy" not in log.Tags()["scalars"]


# ---- refused, before anything is written


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("test=true", "reserved-override"),
        ("run_dir=elsewhere", "reserved-override"),
        ("resume=elsewhere", "reserved-override"),
        ("objective=nonsense", "objective"),
        ("data.classes=[adult,safe],[harmful,safe]", "swept-held-out-videos"),
        ("data.split.val_fraction=0.1,0.2", "swept-held-out-videos"),
    ],
)
def test_what_a_sweep_does_not_take(override: str, code: str, command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    refused(train(*command, override, f"hydra.sweep.dir={folder}"), f"[{code}]")
    assert not folder.exists()


# ---- planned


def test_the_preset_of_a_grid(tmp_path: Path) -> None:
    record, cfg = planned(tmp_path, "sweep=frames_resolution_lstm")
    assert record["planned"] == 18
    assert record["swept"] == ["data.num_frames", "data.resolution", "model.lstm.hidden_size"]
    assert {"data.store.num_frames=32", "data.store.resolution=112"} < set(
        OmegaConf.to_container(cfg.hydra.overrides.task)
    )
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert planned(tmp_path / "seeds", "sweep=frames_resolution_lstm", swept=("seed=0,1,2",))[0]["planned"] == 54
    assert planned(tmp_path / "twice", swept=("optim.lr=0.1,0.01,1e-2",))[0]["planned"] == 2


def test_the_preset_of_a_search(tmp_path: Path) -> None:
    record, cfg = planned(tmp_path, "sweep=optuna_cnn_lstm")
    assert record["planned"] is None and len(record["swept"]) == 5 and "optim.lr" in record["swept"]
    assert cfg.hydra.sweeper.direction == "maximize" and cfg.hydra.sweeper.n_trials == 20
    assert cfg.hydra.sweeper.storage == f"sqlite:///{tmp_path}/study.db"
    cfg = planned(tmp_path / "loss", "sweep=optuna_cnn_lstm", "objective=loss")[1]
    assert LOWER_IS_BETTER["loss"] and cfg.hydra.sweeper.direction == "minimize"


def test_the_command_line_replaces_what_a_preset_sweeps(tmp_path: Path) -> None:
    """Jobs that fail at once show which ones there are."""
    nowhere = ["data=folder", "data.source=nowhere", "seed=7"]
    given = ["sweep=frames_resolution_lstm", "data.num_frames=4,8", "data.resolution=32", "seed=0"]
    result = train(*nowhere, *given, f"hydra.sweep.dir={tmp_path}")
    assert result.code == 1
    expected = [f"num_frames={frames},hidden_size={size}" for frames in (4, 8) for size in (32, 64, 128)]
    assert names(tmp_path) == sorted(expected)
    assert read_json(tmp_path / "sweep.json")["planned"] == 6
    assert "0 of 6 jobs done" in result.stdout and result.stdout.count(": started") == 6


def test_a_group_can_be_swept(tmp_path: Path) -> None:
    result = train("-m", "data=folder", "data.source=nowhere", "model=glob(cnn_*)", f"hydra.sweep.dir={tmp_path}")
    assert result.code == 1
    assert names(tmp_path) == ["model=cnn_lstm", "model=cnn_mean"]
    assert read_json(tmp_path / "model=cnn_mean" / "job.json")["knobs"] == {"model": "cnn_mean"}
    assert read_json(tmp_path / "sweep.json")["planned"] == 2


def test_no_job_starts_where_the_sweep_could_not_be_prepared(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs would not have been told to leave the test set alone."""
    monkeypatch.delattr("vidcls.sweeps.jobs.shared_store")  # a bug
    result = train("-m", *base, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert result.code == 1 and "NameError: name 'shared_store'" in result.stderr
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


def test_a_job_that_another_process_has_finished_did_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where locks do not hold between machines, and one of two is refused."""
    for name in ("job.json", "metrics.json", "error.txt"):
        (tmp_path / "seed=0").mkdir(exist_ok=True)
        (tmp_path / "seed=0" / name).write_text("{}")
    SweepCallback().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "1 of 1 jobs done" in (out := capsys.readouterr().out) and "failed" not in out


def test_names_of_different_jobs_differ() -> None:
    overrides = ["data.source=/a/b", "data.source=/a_b", "data.source=_a_b", "data.source=" + "x" * 300]
    overrides += ["data.source=" + "x" * 301, "data.source=ä", "data.source=A"]
    assert len({job_name(text) for text in overrides}) == len(overrides)


@pytest.mark.parametrize(
    ("overrides", "store"),
    [
        (["data.num_frames=8,16,32"], ["data.store.num_frames=32"]),
        (["data.num_frames=4,6,12"], ["data.store.num_frames=12"]),  # the least of which all are divisors
        (["data.num_frames=7,9,11"], []),  # it would be 693
        (["data.num_frames=6,8,8,8"], []),  # 24, where 6 and 8 are needed
        (["data.num_frames=range(2,5,2)"], ["data.store.num_frames=4"]),
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
    assert shared_store(cfg, parse_overrides(overrides)) == store


def test_what_jobs_share_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for frames, one in (("4,8", "one decode ("), ("7,9,11", "one decode for each data.num_frames (")):
        planned(tmp_path / frames.replace(",", "_"), swept=(f"data.num_frames={frames}", "data.resolution=16,32"))
        assert f"which share {one}data.store." in capsys.readouterr().out


def test_a_store_of_ones_own_is_kept() -> None:
    cfg = OmegaConf.create({"data": {"store": {"num_frames": 64, "resolution": None}}})
    given = parse_overrides(["data.num_frames=4,8", "data.resolution=16,32"])
    assert shared_store(cfg, given) == ["data.store.resolution=32"]
