"""Sweeps written by hand as tables: jobs, ranks, effects and noise, computed by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.runs import refused
from helpers.written_sweeps import FRAMES, HIDDEN, Writer, report

from vidcls.plots.sweep_plots import pareto_front
from vidcls.sweeps.sweep_report import caveats, report_text, sweep_figures
from vidcls.sweeps.tables import (
    effects,
    margin,
    margin_noise,
    rank,
    read_sweep,
    seed_spread,
    winning_job,
)


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


def test_a_seed_that_failed_does_not_make_the_others_win(tmp_path: Path) -> None:
    """A job whose training diverges fails: the mean of those that survive would flatter."""
    writer = Writer(tmp_path, [FRAMES, "seed"], planned=6)
    for frames, seed, accuracy in ((8, 0, 0.9), (16, 0, 0.7), (16, 1, 0.8), (32, 0, 0.6), (32, 1, 0.5)):
        writer.done({FRAMES: frames, "seed": seed}, accuracy)
    writer.failed({FRAMES: 8, "seed": 1}, "expected finite probabilities; got NaN in epoch 3: training has diverged")
    sweep = read_sweep(tmp_path)
    ranking = rank(sweep)
    winner, notes = winning_job(sweep, ranking), " ".join(caveats(sweep, ranking))
    assert ranking[FRAMES].to_list() == [16, 32, 8]
    assert winner is not None and winner["objective"] == 0.8
    assert "1 configurations come last: a job of theirs failed" in notes and "leads the runner-up by 0.200" in notes
    for path in tmp_path.glob("num_frames=[13]*"):  # where no configuration is complete, there is a winner, too
        shutil.rmtree(path)
    sweep = read_sweep(tmp_path)
    winner = winning_job(sweep, rank(sweep))
    assert winner is not None and winner["objective"] == 0.9


def test_plots_show_no_mean_that_a_failed_seed_flatters(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES, HIDDEN, "seed"], planned=5)
    for frames, hidden, accuracy in ((8, 32, 0.9), (8, 64, 0.5), (16, 32, 0.7), (16, 64, 0.6)):
        writer.done({FRAMES: frames, HIDDEN: hidden, "seed": 0}, accuracy)
    writer.failed({FRAMES: 8, HIDDEN: 32, "seed": 1}, "training has diverged")
    sweep = read_sweep(tmp_path)
    figures = sweep_figures(sweep, rank(sweep))
    cells = [text.get_text() for axes in figures["heatmap"].axes for text in axes.texts]
    assert "0.700" in cells and "0.900" not in cells
    front = [text.get_text() for text in figures["pareto"].legends[0].get_texts()]
    assert any("0.700" in text for text in front) and not any("0.900" in text for text in front)


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
    assert margin_noise(ranking, 1, 0.3) == pytest.approx(3.182 * 0.3 * math.sqrt(1 / 3 + 1 / 2), rel=1e-3)  # t of 3
    assert seed_spread(ranking.iloc[2:]) is None


@pytest.mark.parametrize(("lead", "words"), [(0.01, "within the seed noise"), (0.5, "above the seed noise")])
def test_a_lead_is_compared_with_the_seed_noise(tmp_path: Path, lead: float, words: str) -> None:
    writer = Writer(tmp_path, [FRAMES, "seed"], planned=6)
    for frames, mean in ((8, 0.3), (16, 0.3 + lead)):
        for seed, aside in enumerate((-0.05, 0.0, 0.05)):
            writer.done({FRAMES: frames, "seed": seed}, mean + aside)
    sweep = read_sweep(tmp_path)
    notes = " ".join(caveats(sweep, rank(sweep)))
    assert f"by {lead:.3f} val accuracy, {words} of 0.113" in notes  # 2.776 * 0.05 * sqrt(2 / 3), with 4 degrees
    assert "over seeds 0.050" in notes


def test_two_equal_configurations_seldom_differ_beyond_seed_noise() -> None:
    """Twice the standard error was exceeded in 17 % of draws."""
    rng, beyond = np.random.default_rng(0), 0
    for _ in range(1000):
        drawn = rng.normal(size=(2, 2))
        columns = {"seeds": [2, 2], "objective_mean": drawn.mean(axis=1), "objective_std": drawn.std(axis=1, ddof=1)}
        ranking = pd.DataFrame(columns)
        spread = seed_spread(ranking)
        assert spread is not None
        beyond += margin(ranking, 1) > margin_noise(ranking, 1, spread)
    assert beyond < 80


def test_seeds_that_change_nothing_do_not_call_a_lead_real(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [FRAMES, "seed"], planned=4)
    for frames, seed in ((8, 0), (8, 1), (16, 0), (16, 1)):
        writer.done({FRAMES: frames, "seed": seed}, 0.5 + frames / 1000)
    sweep = read_sweep(tmp_path)
    notes = " ".join(caveats(sweep, rank(sweep)))
    assert "Seeds change nothing here" in notes and "noise" not in notes


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
    drawn = report(grid.folder)
    assert drawn.code == 0 and "With data.seed=0 all have the same" in drawn.stdout
    moved.write_text(moved.read_text().replace("2,harmful,val,ok", changed))
    refused(report(grid.folder), "[different-held-out-videos]", moved.parent.name)


@pytest.mark.parametrize(("lower_is_better", "front"), [(False, [1, 3, 0]), (True, [1])])
def test_the_pareto_front(lower_is_better: bool, front: list[int]) -> None:
    table = pd.DataFrame({"clips_per_second": [1.0, 3.0, 2.0, 2.0], "objective_mean": [0.9, 0.5, 0.5, 0.6]})
    assert pareto_front(table, lower_is_better).index.to_list() == front
