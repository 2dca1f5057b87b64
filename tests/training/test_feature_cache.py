"""Features of frozen encoders: written whole or not at all, computed once, and equal to computing them again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import timm
import torch
from helpers.commands import once, start_train, train
from helpers.damage import altered, truncated
from helpers.runs import CLASSES, evaluate, metrics_of, results, same_weights, table, weights
from hydra.utils import instantiate
from lightning.pytorch.strategies import SingleDeviceStrategy
from torchvision.models import get_model

from vidcls.cli import compose_config
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.manifest import read_manifest
from vidcls.data.store import FeatureStore, FrameStore
from vidcls.prediction.loading import load_run
from vidcls.training.feature_cache import compute_features
from vidcls.training.inference import pad_batch
from vidcls.training.loop import build_module
from vidcls.training.module import VideoClassifier

Damage = Callable[[Path], None]
Overrides = list[str]


def gone(path: Path) -> None:
    path.unlink()


# ---- end to end: a frozen network on a dozen videos


def random_weights(folder: Path, model: str, seed: int) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    net = timm.create_model(model) if model == "test_resnet" else get_model(model)
    torch.save(net.state_dict(), folder / f"{model}_{seed}.pth")
    return folder / f"{model}_{seed}.pth"


@pytest.fixture(scope="session")
def frozen(shared: Path, demo_folder: Path) -> Overrides:
    """The overrides of a short run with a frozen ResNet, but for its cache and its folder."""
    folder = once(shared, "weights_0", lambda folder: random_weights(folder, "test_resnet", seed=0))
    data = ["data=folder", f"data.source={demo_folder}", "data.num_frames=4", "data.resolution=32"]
    model = ["model=encoder_head", "model.encoder.name=timm/test_resnet", "model.encoder.trainable_from=none"]
    model += [f"model.encoder.weights={folder / 'test_resnet_0.pth'}", "model/head=pool"]
    return [*data, *model, "data.decode.workers=1", "trainer.accelerator=cpu", "trainer.max_epochs=2", "figures=false"]


@pytest.fixture(scope="session")
def cached(shared: Path, frozen: Overrides) -> Path:
    """A folder with the run and its cache, to be read only."""

    def run(folder: Path) -> None:
        start(folder, *frozen)

    return once(shared, "cached", run)


@pytest.fixture
def copied(cached: Path, tmp_path: Path) -> Path:
    """The same, with files as old as they were, for further runs."""
    return Path(shutil.copytree(cached, tmp_path / "copied"))


def start(folder: Path, *overrides: str, name: str = "run") -> Path:
    result = train(*overrides, f"cache_dir={folder / 'cache'}", f"run_dir={folder / name}")
    assert result.code == 0, result.stderr
    return folder / name


def compute(folder: Path, cached: Path, *overrides: str) -> VideoDataModule:
    """What a run does about features before it trains, over the videos that the run in ``cached`` has decoded."""
    cfg = compose_config("train", *overrides, f"cache_dir={folder / 'cache'}", f"run_dir={folder / 'new'}")
    datamodule = VideoDataModule(instantiate(cfg.data))
    datamodule.load_manifest(read_manifest(cached / "run" / "manifest.csv"))
    datamodule.store = FrameStore(cached / "cache" / "store", datamodule.options.store)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = datamodule  # type: ignore[attr-defined]
    instantiate(cfg.callbacks.features).setup(trainer, build_module(cfg, datamodule), "fit")
    return datamodule


def entries(folder: Path) -> dict[str, int]:
    """The files with features and when each was written, in nanoseconds."""
    root = folder / "cache" / "features"
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in sorted(root.rglob("*.safetensors"))}


def test_features_of_each_video_are_computed_once(cached: Path) -> None:
    manifest = table(cached / "run" / "manifest.csv")
    assert sorted(Path(name).stem for name in entries(cached)) == sorted(manifest["sha256"]) and len(manifest) == 12
    assert len({Path(name).parts[0] for name in entries(cached)}) == 1  # one encoder, one folder


def test_features_are_those_of_the_network(cached: Path) -> None:
    trained = load_run(cached / "run")
    (folder,) = (cached / "cache" / "features").iterdir()
    data = trained.videos()
    data.load_manifest(trained.manifest)
    videos = data.dataset("val")
    with torch.inference_mode():
        frames = torch.from_numpy(np.stack([videos.frames(row) for row in range(len(videos))]))
        said = trained.model.encode(trained.preprocess(pad_batch(frames, data.options.batch_size)))[: len(frames)]
    assert said.shape == (3, 4, 96)
    for sha256, features in zip(videos.sha256s, said, strict=True):
        np.testing.assert_array_equal(FeatureStore(folder).read(sha256), features.numpy())


def test_the_encoder_stays_what_its_file_says(cached: Path, frozen: Overrides) -> None:
    (path,) = (text.partition("=")[2] for text in frozen if text.startswith("model.encoder.weights="))
    file, state = torch.load(path, weights_only=True), weights(cached / "run")
    held = {name.removeprefix("model.encoder.net."): value for name, value in state.items() if ".net." in name}
    assert len(held) > 50 and all(torch.equal(value, file[name]) for name, value in held.items())


def test_metrics_are_those_of_the_whole_network_to_the_last_digit(copied: Path) -> None:
    """evaluate.py does not use features: it runs the network on the frames."""
    shutil.rmtree(copied / "cache" / "features")
    evaluate(copied / "run", "split=test", f"cache_dir={copied / 'cache'}")
    again, before = results(copied / "run" / "evaluations" / "test")["test"], metrics_of(copied / "run")["test"]
    assert {name: again[name] for name in before} == before
    predictions = (copied / "run" / "predictions_test.csv").read_bytes()
    assert (copied / "run" / "evaluations" / "test" / "predictions.csv").read_bytes() == predictions
    assert not entries(copied)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_in_other_precisions_too(precision: str, copied: Path, frozen: Overrides) -> None:
    half = [*frozen, f"trainer.precision={precision}", "trainer.max_epochs=1", "data.num_frames=2"]
    half.append("data.store.num_frames=4")
    run = start(copied, *half, name="bf16")
    assert len(entries(copied)) == 24  # features of their own
    again = start(copied, *half, name="again")  # from the cache alone
    evaluate(run, "split=val")
    before = metrics_of(run)["val"]
    assert before == metrics_of(again)["val"]
    evaluated = results(run / "evaluations" / "val")["val"]
    assert {name: evaluated[name] for name in before} == before


def test_training_goes_as_it_would_without(copied: Path, frozen: Overrides) -> None:
    without = start(copied, *frozen, "~callbacks.features", name="without")
    one, two = (table(run / "predictions_val.csv")[CLASSES].to_numpy() for run in (copied / "run", without))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert metrics_of(without)["train"]["loss"] == pytest.approx(metrics_of(copied / "run")["train"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        ["model/head=lstm", "model.dropout=0.1"],
        ["model/head=transformer", "callbacks=ema", "seed=1", "optim.lr=0.01", "data.num_workers=1"],
    ],
    ids=["lstm", "transformer"],
)
def test_other_runs_compute_nothing_again(copied: Path, frozen: Overrides, other: Overrides) -> None:
    before = entries(copied)
    compute(copied, copied, *frozen, *other)
    assert entries(copied) == before


@pytest.mark.parametrize("damage", [truncated, altered, gone])
def test_a_damaged_file_is_written_again(copied: Path, frozen: Overrides, damage: Damage) -> None:
    before = entries(copied)
    name = compute(copied, copied, *frozen).dataset("val").sha256s[0]
    (path,) = (copied / "cache" / "features").rglob(f"{name}.safetensors")
    content = path.read_bytes()
    damage(path)
    compute(copied, copied, *frozen)
    after = entries(copied)
    assert path.read_bytes() == content and after.keys() == before.keys()
    assert [Path(entry).stem for entry in after if after[entry] != before[entry]] == [name]


@pytest.mark.parametrize(
    "other",
    [
        ["model.motion=difference"],
        ["data.batch_size=5"],  # whose products may round otherwise
        ["data.num_frames=2", "data.store.num_frames=4"],
        ["normalise.mean=[0.4,0.4,0.4]"],
        ["model.encoder.temporal_shift=true"],
    ],
    ids=lambda other: other[0],
)
def test_what_matters_gets_a_folder_of_its_own(copied: Path, frozen: Overrides, other: Overrides) -> None:
    before = entries(copied)
    compute(copied, copied, *frozen, *other)
    after = entries(copied)
    assert len(after) == 12 + 9 and {name: after[name] for name in before} == before  # train and val


def test_features_of_frames_from_other_decoders_are_computed_again(
    copied: Path, frozen: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = entries(copied)
    (frames,) = (copied / "cache" / "store").iterdir()
    frames.rename(frames.with_name(frames.name.partition("_decord")[0] + "_av99"))
    monkeypatch.setattr("vidcls.data.store.decoder_versions", lambda: {"av": "99"})
    compute(copied, copied, *frozen)
    after = entries(copied)
    assert len(after) == 12 + 9 and {name: after[name] for name in before} == before  # train and val


def test_features_belong_to_weights_not_to_their_file(copied: Path, frozen: Overrides, tmp_path: Path) -> None:
    (path,) = (text.partition("=")[2] for text in frozen if text.startswith("model.encoder.weights="))
    before = entries(copied)
    same = shutil.copy(path, tmp_path / "same.pth")
    compute(copied, copied, *frozen, f"model.encoder.weights={same}")
    assert entries(copied) == before
    other = random_weights(tmp_path, "test_resnet", seed=1)
    compute(copied, copied, *frozen, f"model.encoder.weights={other}")
    after = entries(copied)
    assert len(after) == 12 + 9 and {name: after[name] for name in before} == before


def test_a_run_goes_on_without_the_file_of_its_weights(cached: Path, frozen: Overrides, tmp_path: Path) -> None:
    """Also where features have to be computed again, which is before the trainer restores its checkpoint."""
    (path,) = (text.partition("=")[2] for text in frozen if text.startswith("model.encoder.weights="))
    borrowed = Path(shutil.copy(path, tmp_path / "borrowed.pth"))
    run = start(tmp_path, *frozen, f"model.encoder.weights={borrowed}", "trainer.max_epochs=1")
    borrowed.unlink()
    shutil.rmtree(tmp_path / "cache" / "features")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    result = train(f"resume={run}")
    assert result.code == 0, result.stderr
    assert entries(tmp_path).keys() == entries(cached).keys()
    assert same_weights(weights(run, "last"), weights(cached / "run", "last"))
    assert metrics_of(run)["val"] == metrics_of(cached / "run")["val"]


@pytest.mark.parametrize(
    "other",
    [
        ["augment=standard"],
        ["augment.mixup=0.2"],
        ["data.temporal_jitter=true", "data.store.num_frames=8"],
        ["model.encoder.trainable_from=layer4"],
        ["model.encoder.trainable_from=all"],
    ],
    ids=lambda other: other[0],
)
def test_what_changes_is_not_kept(cached: Path, tmp_path: Path, frozen: Overrides, other: Overrides) -> None:
    assert compute(tmp_path, cached, *frozen, *other).features is None
    assert not (tmp_path / "cache" / "features").exists()


def test_networks_of_clips_have_features_too(cached: Path, tmp_path: Path, frozen: Overrides) -> None:
    path = random_weights(tmp_path, "mc3_18", seed=0)
    model = ["model=mc3_18", f"model.weights={path}", "model.trainable_from=none"]
    videos = compute(tmp_path, cached, *(text for text in frozen if not text.startswith("model")), *model)
    assert videos.features is not None
    assert {videos.features.read(sha256).shape for sha256 in videos.dataset("val").sha256s} == {(512,)}


def test_of_several_clips_training_draws_one_and_evaluation_averages_all(tmp_path: Path, frozen: Overrides) -> None:
    clips = ["data.clip_seconds=0.5", "data.num_clips=2", "trainer.max_epochs=1"]
    run, without = start(tmp_path, *frozen, *clips), start(tmp_path, *frozen, *clips, "~callbacks.features", name="no")
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    assert {FeatureStore(folder).read(Path(name).stem).shape for name in entries(tmp_path)} == {(2, 4, 96)}
    one, two = (table(r / "predictions_val.csv")[CLASSES].to_numpy() for r in (run, without))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert metrics_of(without)["train"]["loss"] == pytest.approx(metrics_of(run)["train"]["loss"], rel=1e-4)
    evaluate(run, "split=val")
    assert results(run / "evaluations" / "val")["val"]["loss"] == metrics_of(run)["val"]["loss"]


class OneOfTwo(SingleDeviceStrategy):
    """Does the share of one of two devices, without waiting for the other."""

    def __init__(self, rank: int) -> None:
        super().__init__("cpu")
        self.global_rank, self.world_size = rank, 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_device_that_comes_late_leaves_no_gaps(cached: Path, tmp_path: Path, order: tuple[int, int]) -> None:
    """The first one is through with its share before the second looks what is there."""
    trained, (folder,) = load_run(cached / "run"), (cached / "cache" / "features").iterdir()
    data = trained.videos()
    data.load_manifest(trained.manifest)
    data.features = FeatureStore(tmp_path)
    for count, rank in zip((3, 6), order, strict=True):
        trainer = L.Trainer(accelerator="cpu", strategy=OneOfTwo(rank), logger=False, enable_checkpointing=False)
        module = VideoClassifier(trained.model, trained.preprocess, trained.spec, optim={})
        compute_features(trainer, module, data, ["train"])
        assert len(list(tmp_path.rglob("*.safetensors"))) == count
    for sha256 in data.dataset("train").sha256s:
        assert data.features.path(sha256).read_bytes() == FeatureStore(folder).path(sha256).read_bytes()


def test_two_devices_share_the_work(copied: Path, frozen: Overrides) -> None:
    before = entries(copied)
    (folder,) = (copied / "cache" / "features").iterdir()
    lost = list(before)[::3]
    for name in lost:
        (folder.parent / name).unlink()
    ddp = ["trainer=ddp", "trainer.devices=2", f"cache_dir={copied / 'cache'}", f"run_dir={copied / 'two'}"]
    ddp.append("trainer.max_epochs=1")
    process = start_train(*frozen, *ddp, cwd=copied)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    after = entries(copied)
    assert after.keys() == before.keys() and {name for name in after if after[name] != before[name]} == set(lost)
