"""optim=logistic: converged, the same for any seed, honest about what it was fitted to."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.commands import call, once, train
from helpers.runs import (
    CLASSES,
    assert_same_result,
    change_manifest,
    evaluate,
    metrics_of,
    refused,
    results,
    table,
    weights,
)
from hydra.utils import instantiate
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.preprocessing import StandardScaler

from vidcls.cli import compose_config
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.manifest import read_manifest
from vidcls.data.store import FeatureStore
from vidcls.errors import UserError
from vidcls.metrics.calibration import fit_temperature
from vidcls.prediction.loading import load_run
from vidcls.training.checkpoint import load_checkpoint
from vidcls.training.logistic import Fold, fit_layers, inner_folds
from vidcls.training.loop import build_module

Overrides = list[str]

# ---- the solution


def made_up(videos: int, clips: int, classes: int, size: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(videos) % classes
    return generator.normal(size=(videos, clips, size)) + 0.5 * labels[:, None, None], labels


@pytest.mark.parametrize(("clips", "size"), [(1, 3), (3, 3), (1, 30)])  # the last: more features than clips
@pytest.mark.parametrize("classes", [2, 3])
def test_the_layer_minimises_the_objective_written_out(clips: int, size: int, classes: int) -> None:
    features, labels = made_up(20, clips, classes, size)
    weights, C = np.linspace(0.5, 1.5, 20), 0.3
    rows, targets = features.reshape(-1, size), np.repeat(labels, clips)

    def objective(values: np.ndarray) -> float:
        matrix = values.reshape(-1, size + 1)
        matrix = np.stack([-matrix[0] / 2, matrix[0] / 2]) if classes == 2 else matrix
        logits = rows @ matrix[:, :size].T + matrix[:, size]
        losses = logsumexp(logits, axis=1) - logits[np.arange(len(rows)), targets]
        penalty = 0.5 * (values.reshape(-1, size + 1)[:, :size] ** 2).sum() / C
        return float((np.repeat(weights / clips, clips) * losses).sum() + penalty)

    (layer,) = fit_layers(features, labels, weights, [C], max_iter=1000)
    found = np.column_stack([layer.weight, layer.bias])
    found = found[1:] - found[:1] if classes == 2 else found
    best = minimize(objective, np.zeros(found.size), tol=1e-10)
    assert objective(found.ravel()) <= best.fun + 1e-7
    assert layer.gradient_norm < 1e-6 and layer.weight.shape == (classes, size)


def test_a_fit_that_stops_early_says_so() -> None:
    features, labels = made_up(20, 1, 3)
    with pytest.warns(UserWarning, match=r"has not converged .* optim\.max_iter"):
        (layer,) = fit_layers(features, labels, np.ones(20), [1.0], max_iter=2)
    assert layer.iterations == 2 and layer.gradient_norm > 1e-4


def test_no_group_is_in_two_folds_and_each_fold_trains_on_all_classes() -> None:
    labels = np.arange(60) % 3
    groups = [f"creator {number // 5}" for number in range(60)]
    folds = inner_folds(labels, groups, 5, 3)
    assert len(folds) == 5 and sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(60))
    for train_rows, held_out in folds:
        assert not {groups[row] for row in train_rows} & {groups[row] for row in held_out}
        assert set(labels[train_rows]) == {0, 1, 2}
    order = np.random.default_rng(0).permutation(60)
    again = inner_folds(labels[order], [groups[row] for row in order], 5, 3)
    assert {frozenset(order[held_out]) for _, held_out in again} == {frozenset(held_out) for _, held_out in folds}


def test_fewer_folds_where_there_are_few_groups_and_none_where_a_class_has_one() -> None:
    labels, groups = np.array([0, 1, 0, 1, 0, 1]), ["a", "a", "b", "b", "c", "c"]
    with warnings.catch_warnings(action="error"):
        assert len(inner_folds(labels, groups, 5, 2)) == 3
    with pytest.raises(UserError) as error:
        inner_folds(labels, ["a", "b", "a", "c", "a", "d"], 5, 2)
    assert error.value.code == "too-few-groups"


# ---- end to end: a frozen network on a dozen videos


def random_weights(folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "test_resnet.pth")


@pytest.fixture(scope="session")
def solved(shared: Path, demo_folder: Path) -> Overrides:
    """The overrides of such a run, but for its folder."""
    folder = once(shared, "logistic_weights", random_weights)
    data = ["data=folder", f"data.source={demo_folder}", "data.num_frames=6", "data.resolution=32"]
    model = ["experiment=strong", "refit=false", "model.encoder.name=timm/test_resnet"]
    model.append(f"model.encoder.weights={folder / 'test_resnet.pth'}")
    return [*model, *data, "data.decode.workers=1", "trainer.accelerator=cpu", f"cache_dir={shared / 'logistic_cache'}"]


@pytest.fixture(scope="session")
def run(shared: Path, solved: Overrides) -> Path:
    """A finished run, to be read only."""

    def start(folder: Path) -> None:
        result = train(*solved, f"run_dir={folder}")
        assert result.code == 0, result.stderr
        folder.with_suffix(".txt").write_text(result.stdout + result.stderr)

    return once(shared, "logistic_run", start)


def head_inputs(run: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The clip vectors of a split before they are standardised, from the cache; and its labels."""
    loaded = load_run(run)
    videos = loaded.videos()
    dataset = videos.dataset(split)
    (folder,) = Path(videos.options.cache_dir, "features").iterdir()
    features = torch.from_numpy(np.stack([FeatureStore(folder).read(sha256) for sha256 in dataset.sha256s]))
    with torch.inference_mode():
        return loaded.model.head(features).double().numpy(), np.array(dataset.labels)


def test_it_is_scikit_learns_regression_on_standardised_features(run: Path) -> None:
    vectors, labels = head_inputs(run, "train")
    scaler = StandardScaler().fit(vectors)
    C = metrics_of(run)["logistic_regression"]["C"]
    (layer,) = fit_layers(scaler.transform(vectors)[:, None], labels, np.ones(len(labels)), [C], 10000)
    expected = layer.logits(scaler.transform(head_inputs(run, "val")[0]))
    given = np.log(table(run / "predictions_val.csv")[CLASSES].to_numpy())
    np.testing.assert_allclose(given - given[:, :1], expected - expected[:, :1], atol=1e-3)


def test_what_it_leaves(run: Path) -> None:
    metrics, history = metrics_of(run), table(run / "history.csv")
    assert list(history["epoch"]) == [1]
    assert history["train/accuracy"][0] == pytest.approx(metrics["train"]["accuracy"])
    assert history["val/loss"][0] == pytest.approx(metrics["val"]["loss"])
    fitted = metrics["logistic_regression"]
    assert fitted["gradient_norm"] < 1e-5 and fitted["iterations"] < 10000 and metrics["refit"] is False
    losses = {row["C"]: round(row["loss"], 4) for row in fitted["candidates"]}
    assert fitted["C"] == min(C for C, loss in losses.items() if loss == min(losses.values()))
    assert "optimizer" not in run.with_suffix(".txt").read_text()  # no warning of Lightning's


def test_out_of_fold_predictions_are_those_of_models_that_have_not_seen_the_creator(run: Path) -> None:
    vectors, labels = head_inputs(run, "train")
    written, rows = table(run / "predictions_oof.csv"), load_run(run).videos().rows("train")
    assert list(written["path"]) == list(rows["path"]) and list(written["label"]) == list(rows["label"])
    C = metrics_of(run)["logistic_regression"]["C"]
    for creator in set(rows["creator"]):
        theirs = (rows["creator"] == creator).to_numpy()
        scaler = StandardScaler().fit(vectors[~theirs])
        seen, known = scaler.transform(vectors[~theirs])[:, None], labels[~theirs]
        (layer,) = fit_layers(seen, known, np.ones(len(known)), [C], 10000)
        logits = layer.logits(scaler.transform(vectors[theirs]))
        given = np.log(written.loc[theirs, CLASSES].to_numpy())
        np.testing.assert_allclose(given - given[:, :1], logits - logits[:, :1], atol=1e-3)


def test_inner_folds_keep_copies_together(solved: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name_clusters(manifest: pd.DataFrame, _: object) -> list[str]:
        return [f"cluster {number // 2}" for number in manifest.groupby("label").cumcount()]

    monkeypatch.setattr("vidcls.data.preparation.name_clusters", name_clusters)
    drawn: list[list[Fold]] = []

    def record(*arguments: Any) -> list[Fold]:
        drawn.append(inner_folds(*arguments))
        return drawn[-1]

    monkeypatch.setattr("vidcls.training.logistic.inner_folds", record)
    of_its_own = "data.creator_pattern='(?P<creator>.+)'"
    assert train(*solved, of_its_own, f"run_dir={tmp_path / 'run'}").code == 0
    rows = load_run(tmp_path / "run").videos().rows("train")
    assert rows["creator"].is_unique and set(rows["cluster"]) == {"cluster 0", "cluster 1"}
    assert {tuple(sorted(set(rows["cluster"].iloc[held_out]))) for _, held_out in drawn[0]} == {
        ("cluster 0",),
        ("cluster 1",),
    }


def test_suspect_labels_are_named(run: Path) -> None:
    predicted, suspects = table(run / "predictions_oof.csv").set_index("path"), table(run / "label_issues.csv")
    assert len(suspects) and (predicted.loc[suspects["path"], "label"].to_numpy() == suspects["label"]).all()
    for row in suspects.itertuples():
        assert predicted.loc[row.path, row.suggested] == row.suggested_probability
    page = (run / "label_issues.html").read_text()
    assert page.count("<img ") == len(suspects) and f"{len(suspects)} of {len(predicted)} labels" in page


def test_evaluation_agrees(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    evaluate(copied, "split=val")
    again, before = results(copied / "evaluations" / "val")["val"], metrics_of(copied)["val"]
    assert {name: again[name] for name in before} == before


def test_the_seed_does_not_matter_and_an_interrupted_run_ends_the_same(
    run: Path, solved: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    assert train(*solved, "seed=3", f"run_dir={other}").code == 0
    assert weights(other)["model.output.weight"].equal(weights(run)["model.output.weight"])
    assert (other / "predictions_oof.csv").read_bytes() == (run / "predictions_oof.csv").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    resumed = tmp_path / "resumed"
    for place in ("vidcls.training.callbacks.History.on_train_epoch_end", "vidcls.training.loop.test"):
        with monkeypatch.context() as patch:  # before the checkpoint, then after it
            patch.setattr(place, interrupted)
            start = [f"resume={resumed}"] if resumed.exists() else [*solved, f"run_dir={resumed}"]
            assert train(*start).code == 130
    assert train(f"resume={resumed}").code == 0
    assert_same_result(resumed, run)
    assert (resumed / "predictions_oof.csv").read_bytes() == (run / "predictions_oof.csv").read_bytes()


def test_a_policy_is_fitted_to_out_of_fold_predictions(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    target = "policy.target.harmful.recall=0.999"
    refused(call("evaluate.py", f"run={copied}", target), "training videos of 'harmful'", "recall-not-supported")
    printed = evaluate(copied, "split=val", "policy.safe_class=safe")
    policy, oof = json.loads((copied / "policy.json").read_text()), load_run(run).oof_predictions
    assert oof is not None and policy["temperature"] == fit_temperature(oof.probabilities, oof.labels)
    assert policy["support"] == dict(table(run / "predictions_oof.csv")["label"].value_counts())
    assert "out-of-fold" in printed and "val (fitted)" not in printed
    other = {"train": "val", "val": "train"}
    change_manifest(copied, lambda rows: rows.assign(split=rows["split"].replace(other)))
    refused(call("evaluate.py", f"run={copied}", "split=test", "policy.safe_class=safe"), "other-videos")


def test_refit_is_fitted_to_val_too_and_does_not_hide_it(run: Path, solved: Overrides, tmp_path: Path) -> None:
    refit = tmp_path / "refit"
    result = train(*(text for text in solved if text != "refit=false"), "optim.C=1.0", f"run_dir={refit}")
    assert result.code == 0 and "fitted to val too" in result.stdout, result.stderr
    metrics, val, oof = metrics_of(refit), table(refit / "predictions_val.csv"), table(refit / "predictions_oof.csv")
    (train_x, train_y), (val_x, val_y) = head_inputs(run, "train"), head_inputs(run, "val")
    vectors, labels = np.concatenate([train_x, val_x]), np.concatenate([train_y, val_y])
    scaler = StandardScaler().fit(vectors)
    fitted = metrics["logistic_regression"]
    (layer,) = fit_layers(scaler.transform(vectors)[:, None], labels, np.ones(len(labels)), [fitted["C"]], 10000)
    np.testing.assert_allclose(weights(refit)["model.output.weight"].numpy(), layer.weight, atol=1e-4)
    # What it says of val is what models say that have not seen the creator.
    assert len(oof) == len(labels) == fitted["out_of_fold"]["n"]
    assert oof.tail(len(val)).to_numpy().tolist() == val.to_numpy().tolist()
    assert metrics["refit"] is True and metrics["val"]["accuracy"] == (val["label"] == val["predicted"]).mean()
    assert table(refit / "history.csv")["val/loss"][0] == pytest.approx(metrics["val"]["loss"])
    seen = load_run(refit).make_predictor().predict_split(load_run(refit).videos(), "val")
    assert seen.losses.mean() < 0.5 * metrics["val"]["loss"]
    printed = evaluate(refit, "split=val", "policy.safe_class=safe")
    assert "val (out-of-fold)" in printed and "val (fitted)" in printed  # of the network, and of the policy
    evaluated = results(refit / "evaluations" / "val")
    assert evaluated["about"]["predictions"] == "out-of-fold"
    assert {name: evaluated["val"][name] for name in metrics["val"]} == metrics["val"]
    assert table(refit / "evaluations" / "val" / "predictions.csv").equals(val)
    support = json.loads((refit / "policy.json").read_text())["support"]
    assert support == dict(oof["label"].value_counts())


def test_several_clips_half_precision_and_class_weights(solved: Overrides, tmp_path: Path) -> None:
    clips = [f"cache_dir={tmp_path / 'cache'}", "data.clip_seconds=0.5", "data.num_clips=2"]
    clips += ["trainer.precision=bf16-mixed", "loss.class_weights=balanced"]
    assert train(*solved[:-1], *clips, "optim.C=0.01", "optim.folds=2", f"run_dir={tmp_path / 'run'}").code == 0
    metrics = metrics_of(tmp_path / "run")
    fitted = metrics["logistic_regression"]
    assert (fitted["C"], fitted["folds"], fitted["out_of_fold"]["n"]) == (0.01, 2, metrics["train"]["n"])
    evaluate(tmp_path / "run", "split=val")
    again = results(tmp_path / "run" / "evaluations" / "val")["val"]
    assert {name: again[name] for name in metrics["val"]} == metrics["val"]


@pytest.mark.parametrize("refit", [True, False])
def test_classes_are_balanced_over_what_is_fitted_to(refit: bool, run: Path, solved: Overrides, tmp_path: Path) -> None:
    options = [f"refit={str(refit).lower()}", "loss.class_weights=balanced", f"run_dir={tmp_path}"]
    cfg = compose_config("train", *solved, *options)
    videos, manifest = VideoDataModule(instantiate(cfg.data)), read_manifest(run / "manifest.csv")
    videos.load_manifest(manifest.drop(manifest[manifest["split"] == "train"].index[0]))
    fitted = pd.concat([videos.rows(split) for split in ("train", "val")[: 1 + refit]])
    counts = fitted["label"].value_counts()
    given = build_module(cfg, videos).class_weights
    assert given is not None and counts.nunique() > 1
    assert given.tolist() == pytest.approx([len(fitted) / (3 * counts[name]) for name in CLASSES])


def test_standardised_clips_for_other_optimisers_too(run: Path, solved: Overrides, tmp_path: Path) -> None:
    other = ["optim=adamw", "model.dropout=0.5", "trainer.max_epochs=2", "callbacks=ema"]
    assert train(*solved, *other, f"run_dir={tmp_path / 'run'}").code == 0
    scaler = StandardScaler().fit(head_inputs(run, "train")[0])
    for folder in (run, tmp_path / "run"):
        found = weights(folder, "best")
        np.testing.assert_allclose(found["model.standardise.mean"].numpy(), scaler.mean_, rtol=1e-5)
        np.testing.assert_allclose(found["model.standardise.scale"].numpy(), scaler.scale_, rtol=1e-5)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").oof_predictions is None
