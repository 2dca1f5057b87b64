"""An interrupted sweep is continued to the same result; what is done is not done again."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import once, start_train, train
from helpers.runs import metrics_of, refused, wait_until
from helpers.sweeps import DONE, FAILED, contents, names, planned, read_json
from omegaconf import DictConfig, OmegaConf

from vidcls.errors import UserError
from vidcls.sweeps.jobs import callback_errors_exit, end_on_ctrl_c, job_name
from vidcls.sweeps.tables import rank, read_sweep

# ---- continued


def test_a_finished_job_is_not_run_again(copied: Path, command: list[str]) -> None:
    before = {name: contents(copied / name) for name in DONE}
    for name in FAILED:  # the cause has been fixed since; a retry must not stop at what the first try left
        assert not (copied / name / "metrics.json").exists()
    more = ["data.num_frames=2,4", "model.lstm.hidden_size=4,-1,8"]
    result = train(*command[:-3], *more, command[-1], f"sweep.resume={copied}")
    assert result.code == 1, result.stderr
    assert {name: contents(copied / name) for name in DONE} == before
    assert [result.stdout.count(f"{name}: already finished") for name in DONE] == [1, 1]
    assert [result.stdout.count(f"{name}: ") for name in FAILED] == [2, 2]  # tried, and still failing
    new = ["num_frames=2,hidden_size=8", "num_frames=4,hidden_size=8"]
    assert names(copied) == sorted([*DONE, *FAILED, *new])
    assert [metrics_of(copied / name)["timing"]["videos_decoded"] for name in new] == [0, 0]
    assert read_json(copied / "sweep.json")["planned"] == 6
    assert f"4 of 6 jobs done: {copied}" in result.stdout


def test_a_failed_job_that_can_run_now_runs(copied: Path, command: list[str], sweep: Path) -> None:
    """Its error.txt goes; a half-done one goes on from its last epoch."""
    (broken, half) = (copied / name for name in DONE)
    shutil.rmtree(broken)
    shutil.copytree(copied / FAILED[0], broken)
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


def stored(cfg: DictConfig) -> list[str]:
    overrides: Any = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
    return [text for text in overrides if text.startswith("data.store.")]


def test_a_sweep_is_not_continued_with_other_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(tmp_path, swept=("seed=0,1", "data.source=/my/clips"))
    swept = ("seed=0,1,2", "data.source='/my/clips'")  # quoted or not is the same
    planned(tmp_path, f"sweep.resume={tmp_path}", swept=swept)
    monkeypatch.setattr("vidcls.data.store.DECODE_VERSION", 10**6)
    with pytest.raises(UserError, match=r"decoding\.version=1000000 now") as error:
        planned(tmp_path, f"sweep.resume={tmp_path}", swept=swept)
    assert error.value.code == "another-sweep"


def test_a_sweep_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    """Its command is the same, but a file of conf/ that it names has changed since."""
    folder, given = tmp_path / "sweep", dict[str, list[str]]()
    for lr in ("0.1", "0.2"):  # in two folders, as the tests parse a file once
        mine = tmp_path / lr / "experiment" / "mine.yaml"
        mine.parent.mkdir(parents=True)
        mine.write_text(f"# @package _global_\noptim: {{lr: {lr}}}\n")
        given[lr] = [f"hydra.searchpath=[file://{tmp_path / lr}]", "experiment=mine"]
    planned(folder, *given["0.1"], swept=("seed=0,1",))
    planned(folder, *given["0.1"], f"sweep.resume={folder}", swept=("seed=0,1,2",))
    with pytest.raises(UserError, match=r"optim\.lr=0\.1; got optim\.lr=0\.2 now") as error:
        planned(folder, *given["0.2"], f"sweep.resume={folder}", swept=("seed=0,1,2",))
    assert error.value.code == "another-sweep"


def test_a_sweep_over_a_group_is_not_continued_with_another_choice_of_the_same_name(tmp_path: Path) -> None:
    folder, given = tmp_path / "sweep", dict[str, str]()
    for lr in ("0.1", "0.2"):
        mine = tmp_path / lr / "optim" / "mine.yaml"
        mine.parent.mkdir(parents=True)
        mine.write_text(f"defaults: [adam]\nlr: {lr}\n")
        given[lr] = f"hydra.searchpath=[file://{tmp_path / lr}]"
    planned(folder, given["0.1"], swept=("optim=adam,mine",))
    planned(folder, given["0.1"], f"sweep.resume={folder}", swept=("optim=mine,adamw",))
    with pytest.raises(UserError, match=r"optim=mine: optim\.lr=0\.1; got .*=0\.2 now") as error:
        planned(folder, given["0.2"], f"sweep.resume={folder}", swept=("optim=adam,mine",))
    assert error.value.code == "another-sweep"


def test_a_search_is_not_continued_in_another_space(tmp_path: Path) -> None:
    space, sweeper = "model.lstm.hidden_size=choice(4,8)", "hydra/sweeper=optuna"
    planned(tmp_path, sweeper, swept=(space,))
    planned(tmp_path, sweeper, f"sweep.resume={tmp_path}", swept=(space,))
    with pytest.raises(UserError) as error:
        planned(tmp_path, sweeper, f"sweep.resume={tmp_path}", swept=("model.lstm.hidden_size=choice(4,8,16)",))
    assert error.value.code == "another-sweep"


@pytest.mark.parametrize(
    ("swept", "more", "code"),
    [
        ("data.num_frames=8,16", "data.num_frames=8,16,4", None),
        ("data.num_frames=8,16", "data.num_frames=2", None),
        ("data.num_frames=8,16", "data.num_frames=8,16,32", "another-decoding"),
        ("data.num_frames=8,16", "data.num_frames=8,6", "another-decoding"),
        ("data.num_frames=7,9", "data.num_frames=7,18", None),  # each has a store of its own
        ("data.num_frames=7,9", "data.num_frames=9", None),
        ("data.resolution=32,64", "data.resolution=48,64", None),
        ("data.resolution=32,64", "data.resolution=32,64,96", "another-decoding"),
    ],
)
def test_more_values_keep_the_decoding_of_the_sweep_or_are_refused(
    tmp_path: Path, swept: str, more: str, code: str | None
) -> None:
    """Also the third time, and in sweeps whose sweep.json does not yet name the decoding."""
    _, cfg = planned(tmp_path, swept=(swept, "seed=0,1"))
    store = stored(cfg)
    record = read_json(tmp_path / "sweep.json")
    assert record.pop("store") == store
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    more = f"{more},{more.partition('=')[2]}"  # at least two: else it would not be swept
    for _ in range(2):
        if code is None:
            _, cfg = planned(tmp_path, f"sweep.resume={tmp_path}", swept=(more, "seed=0,1"))
            assert stored(cfg) == store
        else:
            with pytest.raises(UserError) as error:
                planned(tmp_path, f"sweep.resume={tmp_path}", swept=(more, "seed=0,1"))
            assert error.value.code == code


def test_planned_jobs_that_other_values_leave_out_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs that have started stay, and those of the new command are planned as well."""
    planned(tmp_path, swept=("seed=0,1,2,3", "model.encoder.channels=[4,8],[8]"))
    started = [job_name(f"model.encoder.channels=[8],seed={seed}") for seed in (0, 1)]
    for name in started:
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text("{}")
    capsys.readouterr()
    new = ("seed=1,2", "model.encoder.channels=[8],[16]")
    record, _ = planned(tmp_path, f"sweep.resume={tmp_path}", swept=new)
    assert record["planned"] == 4 + 1  # seed 0 has started
    assert "left out: 5 jobs of the earlier command" in capsys.readouterr().out
    assert planned(tmp_path, f"sweep.resume={tmp_path}", swept=new)[0]["planned"] == 5
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["trainer.max_epochs=3", "seed=0,1", "model.lstm.hidden_size=4", "objective=loss"])
def test_another_command_does_not_continue_it(sweep: Path, command: list[str], changed: str) -> None:
    before = contents(sweep)
    others = [text for text in command if not text.startswith(changed.partition("=")[0] + "=")]
    refused(train(*others, changed, f"sweep.resume={sweep}"), "[another-sweep]", changed)
    assert contents(sweep) == before


def test_a_folder_that_is_no_sweep_is_not_continued(command: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(train(*command, f"sweep.resume={folder}"), "[no-sweep]")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_sweep_is_not_taken(sweep: Path, command: list[str]) -> None:
    before = contents(sweep)
    refused(train(*command, f"hydra.sweep.dir={sweep}"), "[used-sweep-dir]")
    assert contents(sweep) == before


# ---- stopped

LONG = ["seed=0,1", "model.lstm.hidden_size=4", "trainer.max_epochs=5", "data.num_frames=4"]


@pytest.fixture(scope="session")
def long_command(base: list[str], shared: Path) -> list[str]:
    return ["-m", *base, f"cache_dir={shared / 'cache'}", *LONG]


@pytest.fixture(scope="session")
def unstopped(shared: Path, long_command: list[str]) -> Path:
    """The folder of a sweep of two jobs that nothing interrupted."""

    def run(folder: Path) -> None:
        result = train(*long_command, f"hydra.sweep.dir={folder}")
        assert result.code == 0, result.stderr
        assert f"2 of 2 jobs done: {folder}" in result.stdout

    return once(shared, "unstopped", run)


def half_way(folder: Path) -> bool:
    """One job is done, and the next one has trained for an epoch."""
    jobs = list(folder.glob("*/checkpoints/last.ckpt"))
    return len(jobs) >= 2 and len(list(folder.glob("*/metrics.json"))) >= 1


def assert_continues(folder: Path, command: list[str], reference: Path) -> None:
    """The rest is run, nothing twice, and the sweep is as if it had never been stopped."""
    done = {path.parent.name: contents(path.parent) for path in folder.glob("*/metrics.json")}
    assert len(done) == 1
    result = train(*command, f"sweep.resume='{folder}'")
    assert result.code == 0, result.stderr
    assert result.stdout.count("already finished") == len(done) and result.stdout.count(": continued") == 1
    assert {name: contents(folder / name) for name in done} == done
    assert names(folder) == names(reference)
    for name in names(reference):
        assert metrics_of(folder / name)["val"] == metrics_of(reference / name)["val"]
        for file in ("history.csv", "predictions_val.csv"):
            assert (folder / name / file).read_bytes() == (reference / name / file).read_bytes(), (name, file)
    rankings = [rank(read_sweep(place)) for place in (folder, reference)]
    timings = ["clips_per_second", "peak_memory_bytes"]
    pd.testing.assert_frame_equal(*(ranking.drop(columns=timings) for ranking in rankings))


def test_kill_9_in_a_sweep(unstopped: Path, long_command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = start_train(*long_command, f"hydra.sweep.dir={folder}", cwd=tmp_path)
    wait_until(lambda: half_way(folder), process)
    process.kill()
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
    hint = f"interrupted; continue with: the same command and sweep.resume='{folder}'"
    assert stderr.strip().splitlines()[-1] == hint
    assert_continues(folder, long_command, unstopped)


@pytest.mark.parametrize("option", ["sweep.resume", "output"])
def test_ctrl_c_between_two_jobs(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra composes the next job then, and would end with its traceback."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    named = {"output": str(tmp_path)} if option == "output" else {}
    end_on_ctrl_c(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}} | named))
    with pytest.raises(SystemExit, match="130"):
        sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == f"interrupted; continue with: the same command and {option}={tmp_path}\n"


def test_ctrl_c_before_the_first_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"), callback_errors_exit():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "interrupted\n"
