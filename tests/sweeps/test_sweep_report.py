"""Sweeps written by hand, with tables computed by hand; the winner that is tested is a real run."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.commands import ROOT, Result, call
from helpers.runs import refused
from PIL import Image

from vidcls.plots.sweep_plots import pareto_front
from vidcls.sweeps.sweep_report import caveats, repeat_command, report_text, sweep_figures
from vidcls.sweeps.tables import (
    Sweep,
    effects,
    margin_noise,
    rank,
    read_sweep,
    seed_spread,
    winning_job,
)

FRAMES, SIZE, HIDDEN = "data.num_frames", "data.resolution", "model.lstm.hidden_size"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class Writer:
    """Writes a sweep's folder as train.py -m would."""

    def __init__(self, folder: Path, swept: list[str], planned: int | None, objective: str = "accuracy") -> None:
        self.folder = folder
        about = {"format": 1, "overrides": ["a=1,2", "seed=range(0,3)"], "swept": swept}
        write_json(folder / "sweep.json", about | {"objective": objective, "planned": planned})

    def job(self, options: dict[str, Any], epochs: int = 0, extra: tuple[str, ...] = ()) -> Path:
        """One that has begun."""
        folder = self.folder / ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in options.items())
        overrides = [f"{name}={value}" for name, value in options.items()]
        write_json(folder / "job.json", {"knobs": options, "overrides": [*overrides, *extra]})
        rows = [f"{epoch},1,0.5,{1 / epoch},{epoch / 10}" for epoch in range(1, epochs + 1)]
        if rows:
            (folder / "history.csv").write_text(
                "\n".join(["epoch,train/loss,train/accuracy,val/loss,val/accuracy", *rows])
            )
        return folder

    def done(self, options: dict[str, Any], value: float | None, speed: float = 10.0, **more: Any) -> Path:
        """One that is finished, with ``value`` as accuracy and as loss."""
        folder = self.job(options, epochs=4, extra=more.pop("extra", ()))
        figures = {"accuracy": value, "macro_f1": value, "loss": value, "n": 50, "auroc": None}
        val = figures | {"calibration_error": 0.1, "accuracy_ci95": [0.4, 0.9]} | more
        timing = {"fit_seconds": 7.0, "clips_per_second": speed, "peak_memory_bytes": None}
        write_json(
            folder / "metrics.json", {"train": None, "val": val, "test": None, "timing": timing, "parameters": 1234}
        )
        return folder

    def failed(self, options: dict[str, Any], reason: str) -> Path:
        """One that failed."""
        folder = self.job(options)
        (folder / "error.txt").write_text(f"Traceback (most recent call last):\n  ...\n{reason}\n")
        return folder


def report(folder: Path, *overrides: str) -> Result:
    return call("report.py", f"sweep={folder}", *overrides)


@pytest.fixture
def grid(tmp_path: Path) -> Writer:
    """Two options and two seeds, all done: means 0.5, 0.6, 0.7 and 0.6."""
    writer = Writer(tmp_path / "grid", [FRAMES, HIDDEN, "seed"], planned=8)
    for frames, hidden, mean in ((16, 32, 0.7), (8, 64, 0.6), (16, 64, 0.6), (8, 32, 0.5)):
        for seed, aside in ((0, -0.1), (1, 0.1)):
            writer.done({FRAMES: frames, HIDDEN: hidden, "seed": seed}, mean + aside, speed=1000 / frames)
    return writer


@pytest.fixture
def ragged(tmp_path: Path) -> Writer:
    """Done, failed, unfinished and not started jobs; words, null, lists and an option with one value."""
    options = ["model", "trainer.gradient_clip_val", "model.encoder.channels", "seed"]
    writer = Writer(tmp_path / "ragged [1]", options, planned=7, objective="loss")

    def values(model: str, clip: float | None, seed: int) -> dict[str, Any]:
        return dict(zip(options, (model, clip, [8, 16], seed), strict=True))

    writer.done(values("cnn_lstm", None, 0), 0.5, extra=("data.source='/my videos/a b'",))
    writer.done(values("cnn_lstm", None, 1), 0.3)
    writer.done(values("cnn_mean", 1.0, 0), 0.9)
    writer.failed(values("cnn_mean", 1.0, 1), "CUDA out of | memory <b>")
    writer.job(values("cnn_mean", None, 0), epochs=2)
    return writer


# ---- tables


def test_every_job_is_a_row_with_its_state(ragged: Writer) -> None:
    sweep = read_sweep(ragged.folder)
    assert list(sweep.jobs["state"]) == ["done", "done", "done", "failed", "unfinished"]
    assert list(sweep.jobs["trainer.gradient_clip_val"]) == ["null", "null", "1.0", "1.0", "null"]
    assert set(sweep.jobs["model.encoder.channels"]) == {"[8, 16]"}
    assert list(sweep.jobs["reason"])[3] == "CUDA out of | memory <b>" and sweep.not_started == 2
    assert sweep.jobs["best_epoch"].to_list()[:3] == [4, 4, 4] and sweep.jobs["best_epoch"][4] == 2
    assert sweep.jobs["best_epoch"].isna().to_list() == [False, False, False, True, False]
    assert sweep.jobs["objective"].to_list()[:3] == [0.5, 0.3, 0.9]


def test_jobs_are_sorted_by_value(tmp_path: Path) -> None:
    writer = Writer(tmp_path, ["optim.lr"], planned=4)
    for lr in (10, 9, 1e-05, 0.5):
        writer.job({"optim.lr": lr})
    assert list(read_sweep(tmp_path).jobs["optim.lr"]) == [1e-05, 0.5, 9, 10]


def test_ranking_is_by_the_mean_over_seeds_and_ties_keep_their_order(grid: Writer) -> None:
    ranking = rank(read_sweep(grid.folder))
    assert ranking[[FRAMES, HIDDEN]].to_numpy().tolist() == [[16, 32], [8, 64], [16, 64], [8, 32]]
    assert ranking["objective_mean"].to_list() == pytest.approx([0.7, 0.6, 0.6, 0.5])
    assert ranking["objective_std"].to_list() == pytest.approx([math.sqrt(0.02)] * 4)  # of two: |a - b| / sqrt(2)
    assert ranking["clips_per_second"].to_list() == [62.5, 125.0, 62.5, 125.0]
    assert ranking["parameters"].to_list() == [1234] * 4
    assert ranking["rank"].to_list() == [1, 2, 3, 4] and ranking["seeds"].to_list() == [2] * 4


def test_less_loss_is_better_and_failures_are_counted(ragged: Writer) -> None:
    sweep = read_sweep(ragged.folder)
    ranking = rank(sweep)
    assert ranking["model"].to_list() == ["cnn_lstm", "cnn_mean"]
    assert ranking["objective_mean"].to_list() == pytest.approx([0.4, 0.9])
    assert ranking["failed"].to_list() == [0, 1] and math.isnan(ranking["objective_std"][1])
    winner = winning_job(sweep, ranking)
    assert winner is not None and winner["objective"] == 0.3


def test_a_seed_that_diverged_is_not_left_out_of_the_mean(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES, "seed"], planned=4, objective="loss")
    for frames, seed, loss in ((8, 0, 0.1), (8, 1, None), (16, 0, 0.5), (16, 1, 0.7)):
        writer.done({FRAMES: frames, "seed": seed}, loss)
    sweep = read_sweep(tmp_path)
    ranking = rank(sweep)
    assert ranking[FRAMES].to_list() == [16, 8] and math.isnan(ranking["objective_mean"][1])
    assert any("1 configurations come last" in text for text in caveats(sweep, ranking))


def test_a_job_that_a_sampler_repeats_counts_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES], planned=None)
    first = writer.done({FRAMES: 8}, 0.5)
    shutil.copytree(first, tmp_path / "again")
    sweep = read_sweep(tmp_path)
    assert len(sweep.jobs) == 2 and rank(sweep)["seeds"].to_list() == [1]


def test_the_effect_of_a_value_is_the_mean_of_its_jobs(grid: Writer) -> None:
    table = effects(read_sweep(grid.folder)).set_index(["option", "value"])
    assert table["jobs"].to_list() == [4] * 6
    means = {(FRAMES, 8): 0.55, (FRAMES, 16): 0.65, (HIDDEN, 32): 0.6, (HIDDEN, 64): 0.6}
    for place, mean in (means | {("seed", 0): 0.5, ("seed", 1): 0.7}).items():
        assert table["mean"][place] == pytest.approx(mean)
    # 0.4, 0.6, 0.5, 0.7 of eight frames: squares of 0.15, 0.05, 0.05, 0.15 over 3
    assert table["std"][FRAMES, 8] == pytest.approx(math.sqrt(0.05 / 3))


def test_a_full_grid_is_balanced_and_one_with_a_hole_is_not(grid: Writer) -> None:
    sweep = read_sweep(grid.folder)
    assert "Unbalanced" not in report_text(sweep, rank(sweep), None, [])
    shutil.rmtree(grid.folder / "num_frames=8,hidden_size=32,seed=0")
    sweep = read_sweep(grid.folder)
    assert "**Unbalanced:**" in report_text(sweep, rank(sweep), None, [])


def test_the_spread_over_seeds_is_pooled() -> None:
    ranking = pd.DataFrame({"seeds": [3, 2, 1], "objective_std": [0.1, 0.4, np.nan]})
    assert seed_spread(ranking) == pytest.approx(math.sqrt((2 * 0.01 + 1 * 0.16) / 3))
    assert margin_noise(ranking, 1, 0.3) == pytest.approx(2 * 0.3 * math.sqrt(1 / 3 + 1 / 2))
    assert seed_spread(ranking.iloc[2:]) is None


@pytest.mark.parametrize(("lead", "words"), [(0.01, "within the seed noise"), (0.5, "above the seed noise")])
def test_a_lead_is_compared_with_the_seed_noise(tmp_path: Path, lead: float, words: str) -> None:
    writer = Writer(tmp_path, [FRAMES, "seed"], planned=6)
    for frames, mean in ((8, 0.3), (16, 0.3 + lead)):
        for seed, aside in enumerate((-0.05, 0.0, 0.05)):
            writer.done({FRAMES: frames, "seed": seed}, mean + aside)
    sweep = read_sweep(tmp_path)
    notes = " ".join(caveats(sweep, rank(sweep)))
    assert f"by {lead:.3f} val accuracy, {words} of 0.082" in notes  # 2 * 0.05 * sqrt(2 / 3)
    assert "over seeds 0.050" in notes


def test_without_repetitions_a_lead_may_be_chance(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES], planned=2)
    writer.done({FRAMES: 8}, 0.5)
    writer.done({FRAMES: 16}, 0.7, n=40)
    sweep = read_sweep(tmp_path)
    notes = " ".join(caveats(sweep, rank(sweep)))
    assert "seed=0,1,2" in notes and "different val splits (40 to 50 videos)" in notes


@pytest.mark.parametrize(
    "changed", ["3,harmful,val,ok", "2,safe,val,ok", "4,safe,test,ok", "2,harmful,val,undecodable"]
)
def test_jobs_with_other_held_out_videos_or_classes_are_not_ranked(grid: Writer, changed: str) -> None:
    """Nor with those that another job could not decode; which videos were trained on may differ, and those of seeds."""
    head = "sha256,label,split,status\n1,safe,train,ok\n9,harmful,train,ok\n"
    for path in grid.folder.glob("*/metrics.json"):
        rows = ["2,harmful,val,ok", "5,safe,test,ok", f"{path.parent.name[-1]},safe,val,ok"]  # drawn by the seed
        path.with_name("manifest.csv").write_text(head + "\n".join(rows))
    moved = grid.folder / "num_frames=16,hidden_size=32,seed=1" / "manifest.csv"
    moved.write_text(moved.read_text().replace("1,safe,train,ok\n", ""))
    assert report(grid.folder).code == 0
    moved.write_text(moved.read_text().replace("2,harmful,val,ok", changed))
    refused(report(grid.folder), "[different-held-out-videos]", moved.parent.name)


@pytest.mark.parametrize(("lower_is_better", "front"), [(False, [1, 3, 0]), (True, [1])])
def test_the_pareto_front(lower_is_better: bool, front: list[int]) -> None:
    table = pd.DataFrame({"clips_per_second": [1.0, 3.0, 2.0, 2.0], "objective_mean": [0.9, 0.5, 0.5, 0.6]})
    assert pareto_front(table, lower_is_better).index.to_list() == front


# ---- the report


def test_reading_a_sweep_imports_no_torch_and_no_decoder() -> None:
    rooms = "jobs, vidcls.sweeps.tables, vidcls.sweeps.winner"
    code = f"import sys, vidcls.sweeps.{rooms}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "decord", "av", "matplotlib"} & set(run.stdout.split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_report_is_written_twice_with_the_same_bytes_and_nowhere_else(grid: Writer) -> None:
    before = files(grid.folder)
    first = report(grid.folder)
    assert first.code == 0, first.stderr
    after = files(grid.folder)
    tables, pictures = ("jobs", "ranking", "effects"), ("effects", "heatmap", "pareto", "curves")
    names = {f"report/{name}.csv" for name in tables} | {f"report/{name}.png" for name in pictures}
    assert after.keys() - before.keys() == names | {"report/report.md"}
    assert all(after[name] == content for name, content in before.items())
    assert report(grid.folder).stdout == first.stdout and files(grid.folder) == after
    jobs = pd.read_csv(grid.folder / "report" / "jobs.csv")
    assert len(jobs) == 8 and jobs["objective"].sum() == pytest.approx(4.8)
    text = (grid.folder / "report" / "report.md").read_text()
    assert all(f"]({name}.png)" in text for name in pictures)
    assert "8 done, 0 failed, 0 unfinished, 0 not started of 8 jobs" in text
    assert re.search(r"\| 1 +\| 16 +\| 32 +\| 2 +\| 0.700 ± 0.141 +\|", text)
    assert "num_frames=16" in first.stdout and "0.700 ± 0.141" in first.stdout


def test_an_unfinished_sweep_is_reported(ragged: Writer) -> None:
    result = report(ragged.folder)
    assert result.code == 0, result.stderr
    text = (ragged.folder / "report" / "report.md").read_text()
    assert "3 done, 1 failed, 1 unfinished, 2 not started of 7 jobs" in text
    assert "The sweep is not finished: the order may change." in text
    assert "CUDA out of \\| memory \\<b\\>" in text and "CUDA out of | memory <b>" in result.stdout
    assert "1 (1 failed)" in text
    command = repeat_command(read_sweep(ragged.folder), "model=cnn_lstm,gradient_clip_val=None,channels=[8, 16],seed=0")
    assert shlex.split(command)[-1] == "data.source='/my videos/a b'"
    assert (ragged.folder / "report" / "heatmap.png").is_file()


def test_nothing_finished_is_said_in_a_line(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "new", [FRAMES], planned=2)
    assert report(writer.folder).code == 0  # no job has begun
    writer.job({FRAMES: 8})
    result = report(writer.folder)
    assert result.code == 0 and "nothing to rank" in result.stdout
    assert files(writer.folder).keys() >= {"report/jobs.csv", "report/report.md"}
    assert not {name for name in files(writer.folder) if name.endswith(".png")}


def test_what_an_earlier_report_drew_does_not_stay(grid: Writer) -> None:
    report(grid.folder)
    for path in grid.folder.glob("num_frames=*"):
        (path / "metrics.json").unlink()
        (path / "history.csv").unlink()
    assert report(grid.folder).code == 0
    assert {path.suffix for path in (grid.folder / "report").iterdir()} == {".csv", ".md"}


def sampled(folder: Path, jobs: int = 16) -> Writer:
    """A study of a sampler: a learning rate over four decades, and a model."""
    writer = Writer(folder, ["optim.lr", "model"], planned=None)
    for place in range(jobs):
        options = {"optim.lr": 10 ** (-5 + 0.27 * place), "model": ("cnn_lstm", "cnn_mean")[place % 2]}
        writer.done(options, 0.5 + 0.01 * place)
    return writer


def test_a_samplers_study_is_reported(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "study").folder
    result = report(folder)
    assert result.code == 0, result.stderr
    text = (folder / "report" / "report.md").read_text()
    assert "16 done, 0 failed, 0 unfinished of 16 jobs so far" in text
    assert re.search(r"\| model +\| cnn\\_lstm +\| 8 +\|", text)
    assert "Values that hardly repeat are in the plot alone: optim.lr." in text
    assert not (folder / "report" / "heatmap.png").exists()
    assert "The best 10 of 16 configurations" in result.stdout


def test_an_option_that_the_best_have_in_common_is_shown(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "study", ["optim.lr", "model"], planned=None)
    for place in range(24):
        writer.done({"optim.lr": 1e-4 * (1 + place), "model": ("cnn_lstm", "cnn_mean")[place // 12]}, place / 24)
    result = report(writer.folder)
    assert result.code == 0, result.stderr
    (head,) = (line for line in result.stdout.splitlines() if "rank" in line and "seeds" in line)
    assert "model" in head and "cnn_mean" in result.stdout


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {FRAMES: 8}])
def test_a_sweep_of_one_job_is_reported(tmp_path: Path, options: dict[str, int]) -> None:
    writer = Writer(tmp_path / "one", list(options), planned=1)
    writer.done(options | {"job": 0}, 0.5).rename(writer.folder / "0")
    write_json(writer.folder / "0" / "job.json", {"knobs": options, "overrides": []})
    result = report(writer.folder)
    assert result.code == 0 and "0.500" in result.stdout, result.stderr
    assert (writer.folder / "report" / "effects.png").exists() == bool(options)


def test_what_is_no_sweep_is_refused(tmp_path: Path, ragged: Writer) -> None:
    refused(report(tmp_path), "[no-sweep]")
    assert not list(tmp_path.glob("report"))
    refused(call("report.py"), "[missing-option]")
    (ragged.folder / "model=cnn_mean,gradient_clip_val=1.0,channels=[8, 16],seed=0" / "metrics.json").write_text("{")
    refused(report(ragged.folder), "[damaged-metrics]")
    (ragged.folder / "sweep.json").write_text("[]")
    refused(report(ragged.folder), "[damaged-sweep]")


@pytest.mark.parametrize(
    ("key", "value", "code"), [("format", 2, "sweep-format"), ("objective", "recall", "objective")]
)
def test_a_sweep_of_another_kind_is_refused(grid: Writer, key: str, value: Any, code: str) -> None:
    about = json.loads((grid.folder / "sweep.json").read_text())
    write_json(grid.folder / "sweep.json", about | {key: value})
    refused(report(grid.folder), f"[{code}]")


# ---- plots


def draw(sweep: Sweep) -> dict[str, Any]:
    return sweep_figures(sweep, rank(sweep))


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_heatmaps_put_frames_and_resolution_on_the_axes(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [HIDDEN, SIZE, FRAMES, "seed"], planned=16)
    for hidden in (32, 64):
        for size in (64, 112):
            for frames in (8, 16):
                for seed in (0, 1):
                    if (hidden, size, frames) != (64, 112, 16):
                        writer.done({HIDDEN: hidden, SIZE: size, FRAMES: frames, "seed": seed}, (hidden + frames) / 100)
    writer.job({HIDDEN: 64, SIZE: 112, FRAMES: 16, "seed": 0})
    figure = draw(read_sweep(tmp_path)).get("heatmap")
    assert figure is not None
    one, other, bar = figure.axes
    assert labels(one) == ["0.400", "0.480"] * 2
    assert labels(other) == ["0.720", "0.800", "0.720", "–"]  # noqa: RUF001
    assert (one.get_title("left"), other.get_title("left")) == ("hidden_size=32", "hidden_size=64")
    assert [text.get_text() for text in one.get_xticklabels()] == ["8", "16"]
    assert bar.get_ylim() == pytest.approx((0.4, 0.8)) and one.images[0].norm is other.images[0].norm


def test_heatmaps_need_two_options_with_several_values(ragged: Writer, tmp_path: Path) -> None:
    assert draw(read_sweep(sampled(tmp_path / "study").folder)).get("heatmap") is None
    one = Writer(tmp_path / "one", [FRAMES, SIZE, "seed"], planned=1)
    one.done({FRAMES: 8, SIZE: 64, "seed": 0}, 0.5)
    assert draw(read_sweep(one.folder)).get("heatmap") is None


def test_the_other_options_are_averaged_where_panels_would_be_too_many(tmp_path: Path) -> None:
    options = [FRAMES, SIZE, HIDDEN, "optim.step"]
    writer = Writer(tmp_path, options, planned=None)
    for place in range(12):
        writer.done({FRAMES: place % 2, SIZE: place // 6, HIDDEN: place, "optim.step": place % 3}, 0.5)
    figure = draw(read_sweep(tmp_path)).get("heatmap")
    assert figure is not None and len(figure.axes) == 12 + 1
    assert "means over step" in figure.get_supxlabel()


def test_effects_show_each_job_and_the_means(grid: Writer, tmp_path: Path) -> None:
    figure, study = (
        draw(read_sweep(folder)).get("effects") for folder in (grid.folder, sampled(tmp_path / "study").folder)
    )
    assert figure is not None and study is not None
    panels = figure.axes
    assert [axes.get_title("left") for axes in panels] == [FRAMES, HIDDEN, "seed"]
    dots, means = panels[0].lines[:-1], panels[0].lines[-1]
    assert sum(len(np.asarray(line.get_ydata())) for line in dots) == 8
    assert list(np.asarray(means.get_ydata())) == pytest.approx([0.55, 0.65])
    rate, model = study.axes
    assert rate.get_xscale() == "log" and len(rate.lines) == 1
    assert [text.get_text() for text in model.get_xticklabels()] == ["cnn_lstm", "cnn_mean"]


def test_the_front_is_labelled_with_its_ranks(grid: Writer) -> None:
    sweep = read_sweep(grid.folder)
    figure = draw(sweep).get("pareto")
    assert figure is not None
    (axes,) = figure.axes
    assert sorted(labels(axes)) == ["#1", "#2"]  # 16 ms at 0.7 and 8 ms at 0.6
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("num_frames=8, hidden_size=64: 0.600 at 8 ms" in text for text in key)


def test_without_a_known_cost_there_is_no_front(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES], planned=1)
    writer.done({FRAMES: 8}, 0.5, speed=0.0)
    sweep = read_sweep(tmp_path)
    assert draw(sweep).get("pareto") is None


def test_curves_are_means_over_seeds_and_include_the_unfinished(ragged: Writer) -> None:
    sweep = read_sweep(ragged.folder)
    figure = draw(sweep).get("curves")
    assert figure is not None
    loss, _ = figure.axes
    assert sorted((len(np.asarray(line.get_xdata())), line.get_linestyle()) for line in loss.lines) == [
        (2, "--"),
        (4, "-"),
        (4, "-"),
    ]
    assert all(list(np.asarray(line.get_ydata()))[:2] == [1.0, 0.5] for line in loss.lines)
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key[0].startswith("#1") and key[2].endswith("(unfinished)")


def test_nothing_is_cut_off_at_the_edge_with_long_names(tmp_path: Path) -> None:
    options = [
        "model.encoder.an_extraordinarily_long_name_of_an_option",
        "callbacks.stopping.another_very_long_name",
        FRAMES,
    ]
    writer = Writer(tmp_path, options, planned=8)
    for place in range(8):
        values = ("a_long_value_for_once", "[32, 64, 128, 256]")[place // 4], place // 2 % 2 == 0, 8 * (place % 2 + 1)
        writer.done(dict(zip(options, values, strict=True)), 0.5 + place / 100, speed=10 + place % 3)
    assert report(tmp_path).code == 0
    for name in ("effects", "heatmap", "pareto", "curves"):
        picture = np.asarray(Image.open(tmp_path / "report" / f"{name}.png").convert("RGB"))
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border == 255).all(), name


# ---- the one test


@pytest.fixture
def real(finished: Path, tmp_path: Path) -> Callable[[], Sweep]:
    """A sweep of two jobs, both copies of a real run, the second better on val."""
    writer = Writer(tmp_path / "real", ["seed"], planned=2)
    for seed, value in ((0, 0.2), (1, 0.3)):
        shutil.copytree(finished, writer.done({"seed": seed}, value), dirs_exist_ok=True)
        writer.done({"seed": seed}, value)
    return lambda: read_sweep(writer.folder)


def test_the_winner_is_tested_once(real: Callable[[], Sweep], finished: Path) -> None:
    folder = real().folder
    result = report(folder, "test_best=true")
    assert result.code == 0, result.stderr
    tested = json.loads((folder / "test.json").read_text())
    truth = json.loads((finished / "metrics.json").read_text())["test"]
    assert {name: tested[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "n")} == {
        name: truth[name] for name in ("accuracy", "accuracy_ci95", "macro_f1", "n")
    }
    assert (tested["job"], tested["objective"], tested["val_value"]) == ("seed=1", "accuracy", 0.3)
    assert tested["when"].endswith("+00:00") and tested["value"] == truth["accuracy"]
    assert f"accuracy {truth['accuracy']:.3f}" in (folder / "report" / "report.md").read_text()
    kept = (folder / "test.json").read_bytes()
    (folder / "seed=1" / "checkpoints" / "best.ckpt").unlink()  # nothing is computed again
    again = report(folder, "test_best=true")
    assert again.code == 0 and "seed=1 reached accuracy" in again.stdout
    assert (folder / "test.json").read_bytes() == kept
    Writer(folder, ["seed"], planned=3).done({"seed": 2}, 0.9)
    refused(report(folder, "test_best=true"), "[test-set-used]", "seed=1", "seed=2")
    assert "no longer the winner" in report(folder).stdout
    assert (folder / "test.json").read_bytes() == kept


def test_a_sweep_without_test_videos_is_refused(real: Callable[[], Sweep]) -> None:
    folder = real().folder
    path = folder / "seed=1" / "manifest.csv"
    path.write_text(path.read_text().replace(",test,", ",train,"))
    refused(report(folder, "test_best=true"), "[empty-split]")
    assert not (folder / "test.json").exists()


def test_an_unfinished_sweep_is_not_tested(grid: Writer, ragged: Writer, tmp_path: Path) -> None:
    refused(report(ragged.folder, "test_best=true"), "[unfinished-sweep]")
    for path in grid.folder.glob("num_frames=*"):
        (path / "metrics.json").rename(path / "error.txt")
    refused(report(grid.folder, "test_best=true"), "[no-winner]")
    (grid.folder / "test.json").write_text("{}")
    refused(report(grid.folder), "[damaged-test]")
