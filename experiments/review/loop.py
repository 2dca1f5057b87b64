"""Does the loop help? Run it with ``VIDCLS_REAL_DATA=PATH python experiments/review/loop.py``.

Options of train.py, such as cache_dir=DIR, may follow. Finished runs are not run again.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.models.settings import weights
from experiments.review.clips import HERE, camera_weights, with_interval
from experiments.review.reviewer import review_page
from experiments.tools import ROOT, machine, needed_clips
from vidcls import fit_policy, load_run
from vidcls.data.decisions import COLUMNS, read_decisions
from vidcls.moderation.policy import save_policy

STUDY = ROOT / "runs" / "studies" / "review_loop"
OPTIONS = sys.argv[1:]
SEEDS, FOLDS = 3, 5
IN_CHROMIUM = (1, 4)  # the seed and fold whose page is really opened; others would get the same decisions
TRAINED_ON, VAL, REVIEWED, WRONG = 100, 20, 40, 4  # val is of the 100: experiment=strong trains on it too


def call(script: str, *overrides: str) -> None:
    """``python SCRIPT OVERRIDES``, in this process: importing torch would take longer than training."""
    with patch.object(sys, "argv", [script, *overrides]):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def real_videos() -> pd.DataFrame:
    """Path, label and creator of the 240."""
    paths = sorted(needed_clips().rglob("*.mp4"))
    rows = [(str(path), path.parent.name, path.stem.split("_")[0]) for path in paths]
    return pd.DataFrame(rows, columns=["path", "label", "creator"])


def draw_roles(videos: pd.DataFrame, held_out: np.ndarray, seed: int) -> pd.Series:
    """Test (held out), val and train (the first 100 others, camera by camera in a drawn order), or pool."""
    others = videos.drop(index=held_out)
    cameras = np.random.default_rng(seed).permutation(others["creator"].unique())
    others = others.sort_values("creator", key=lambda names: names.map(list(cameras).index), kind="stable")
    roles = pd.Series("test", videos.index)
    roles[others.index[:TRAINED_ON]], roles[others.index[TRAINED_ON:]] = "train", "pool"
    roles[others.index[others["creator"].isin(others["creator"][:VAL])]] = "val"  # whole cameras
    return roles


def train(run: Path, videos: pd.DataFrame, decisions: Path | None = None) -> None:
    """Without decisions the pool is predicted with the test split; with them it is listed without labels."""
    if (run / "metrics.json").exists():
        return
    shutil.rmtree(run, ignore_errors=True)  # of an interrupted run
    pool = videos["role"] == "pool"
    listed = videos.assign(split=videos["role"].mask(pool, "" if decisions else "test"))
    listed["label"] = listed["label"].mask(pool & (decisions is not None), "")
    source = run.with_name(f"{run.name}_source.csv")
    source.parent.mkdir(parents=True, exist_ok=True)
    listed.drop(columns="role").to_csv(source, index=False)
    options = ["experiment=strong", f"model.encoder.weights={weights()}", "data=folder", "figures=false"]
    reviewed = [f"data.decisions={decisions}"] if decisions else []
    call("train.py", *options, f"data.source={source}", f"run_dir={run}", *reviewed, *OPTIONS)


def test_predictions(run: Path) -> pd.DataFrame:
    """By path."""
    return pd.read_csv(run / "predictions_test.csv").set_index("path")


def write_decisions(file: Path, run: Path, labels: pd.Series) -> None:
    """What the page would export, for labels by path."""
    sha256 = pd.read_csv(run / "manifest.csv").set_index("path")["sha256"]
    table = pd.DataFrame({"path": labels.index, "sha256": sha256[labels.index].to_numpy(), "label": labels.to_numpy()})
    table = table.assign(verdict="label", reviewer="truth", seconds=1, time="2026-01-01T00:00:00Z")
    table.reindex(columns=list(COLUMNS)).to_csv(file, index=False)


def review_in_chromium(folder: Path, labels: pd.Series, pool: pd.DataFrame) -> Path:
    """Fits a policy, predicts the pool, and decides about the first videos of the page: these must be ``labels``."""
    found, run, output = folder / "page.csv", folder / "before", folder / "predicted"
    if found.exists():
        return found
    loaded, val = load_run(run), pd.read_csv(run / "predictions_val.csv")
    labels_of_val = (val["label"] == loaded.classes[1]).to_numpy(int)
    given = val[loaded.classes].to_numpy(), labels_of_val, loaded.classes, "nofight"
    # As evaluate.py does, which would classify val and test once more, for minutes.
    save_policy(fit_policy(*given, targets={}, review_margin=0.2, model=loaded.identity), loaded.policy_path)
    source = folder / "pool.csv"
    pool[["path"]].to_csv(source, index=False)
    call("predict.py", f"run={run}", f"input={source}", f"output={output}")
    predicted = pd.read_csv(output / "predictions.csv").set_index("path")
    tested = test_predictions(run).loc[predicted.index]
    print("predict.py differs from the test by", (predicted["fight"] - tested["fight"]).abs().max())
    review_page(str(shutil.which("chromium")), output / "report.html", "truth", labels.get, len(labels), found)
    table = read_decisions([found]).set_index("path")
    assert table["label"].to_dict() == labels.to_dict()
    return found


def one_fold(videos: pd.DataFrame, held_out: np.ndarray, seed: int, fold: int) -> pd.DataFrame:
    """The probability of fight of each held-out video, a column for each way to label."""
    folder, generator = STUDY / f"seed{seed}_fold{fold}", np.random.default_rng([seed, fold])
    videos = videos.assign(role=draw_roles(videos, held_out, seed))
    pool = videos[videos["role"] == "pool"].set_index("path")
    train(folder / "before", videos)
    queue = test_predictions(folder / "before")["fight"][pool.index].sort_values(ascending=False, kind="stable").index
    wrong = generator.permutation(REVIEWED) < WRONG
    runs = {"before": folder / "before"}
    picks = {"queue": queue[:REVIEWED], "random": generator.permutation(pool.index)[:REVIEWED], "all": pool.index}
    for name, paths in picks.items():
        right = pool["label"][paths]
        labels = {"right": right}
        if name != "all":
            labels["wrong"] = right.mask(wrong, right.map({"fight": "nofight", "nofight": "fight"}))
            print(f"{name}: {(right == 'fight').sum()} of {len(right)} are fights")
        for kind, of_kind in labels.items():
            run = runs[f"{name}, {kind}"] = folder / f"{name}_{kind}"
            decisions = folder / f"{name}_{kind}.csv"
            write_decisions(decisions, folder / "before", of_kind)
            if (seed, fold, name, kind) == (*IN_CHROMIUM, "queue", "wrong"):
                decisions = review_in_chromium(folder, of_kind, pool.reset_index())
            train(run, videos, decisions)
            used = pd.read_csv(run / "manifest.csv").query("label_source == 'decisions'")
            assert used.set_index("path")["label"].to_dict() == of_kind.to_dict() and set(used["split"]) == {"train"}
    held = videos.loc[held_out, "path"]
    return pd.DataFrame({name: test_predictions(run)["fight"][held] for name, run in runs.items()})


def main() -> None:
    """Writes loop.csv."""
    videos = real_videos()
    truth = (videos.set_index("path")["label"] == "fight").astype(float)
    right, losses = [], []
    for seed in range(SEEDS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        splits = folds.split(videos, videos["label"], videos["creator"])
        found = pd.concat([one_fold(videos, held_out, seed, fold) for fold, (_, held_out) in enumerate(splits)])
        found = found.loc[videos["path"]]
        right.append((found > 0.5).eq(truth > 0.5, axis=0).astype(float))
        losses.append(-np.log(found.mul(truth, axis=0) + (1 - found).mul(1 - truth, axis=0)))
    drawn = camera_weights(videos["creator"].to_numpy(str))
    rows = {}
    for metric, of_seeds in {"accuracy": right, "log loss": losses}.items():
        mean = sum(of_seeds) / SEEDS
        gain, sd = mean.sub(mean["before"], axis=0), pd.DataFrame([one.mean() for one in of_seeds]).std()
        for column, values in {metric: mean, f"{metric}: change": gain}.items():
            resampled = drawn @ values / drawn.sum(axis=1, keepdims=True)
            rows[column] = [with_interval(values[name].mean(), resampled[name]) for name in mean]
        rows[f"{metric}: sd over seeds"] = sd.round(3).to_list()
    table = pd.DataFrame(rows, index=pd.Index(right[0].columns, name="trained on 100 and"))
    table.to_csv(HERE / "loop.csv")
    print(machine(), table.to_markdown(), sep="\n")


if __name__ == "__main__":
    main()
