"""Every file in conf/ composes, its keys are keywords of what it builds, and mistakes are named."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import train
from helpers.conf_files import CONF
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter

import vidcls.sweeps.jobs  # noqa: F401  # registers the resolvers that the files use
from vidcls.cli import trusted_packages
from vidcls.data.demo import draw_demo
from vidcls.data.options import DecodeLimits, ZipOptions
from vidcls.models.backbones import Backbone
from vidcls.models.classifiers import Classifier
from vidcls.models.encoders import ConvEncoder
from vidcls.models.heads import LSTMHead, PoolHead, RecurrentHead, TransformerHead
from vidcls.training.loop import build_trainer
from vidcls.training.module import VideoClassifier
from vidcls.training.optim import SCHEDULE_OPTIONS
from vidcls.training.transforms import Augment

ENTRIES = sorted(path.stem for path in CONF.glob("*.yaml"))
FILES = [path for path in CONF.glob("*/**/*.yaml") if path.parent.name not in ("report", "command")]
# report/ is an entry of its own, command/ is part of the others.
OPTIONS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in FILES)
GROUPS = ("data", "model", "augment", "optim", "trainer", "callbacks", "logger", "hydra", "experiment", "sweep")
GROUPS += ("debug", "engine", "paths")


def composed(*overrides: str, conf: Path = CONF, entry: str = "train", hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(entry, list(overrides), return_hydra_config=hydra)


@cache
def option(name: str) -> DictConfig:
    group, _, value = name.rpartition("/")
    known = group.partition("/")[0] in GROUPS
    own = {"model/video": ["model.name=r3d_18"], "model/custom": ["model._target_=experiments.own_model.tiny3d.Tiny3D"]}
    needed = own.get(name, ["model=encoder_head"] if group.count("/") else [])
    needed = needed if group.startswith("model") else []
    value = "'true'" if value == "true" else value  # a bare true is no name of a file to Hydra
    return composed(f"{group if known else f'+{group}'}={value}", "data.source=videos", "run_dir=run", *needed)


def test_all_groups_are_known_here() -> None:
    assert {"train"} <= set(ENTRIES)
    assert {name.partition("/")[0] for name in OPTIONS} >= set(GROUPS)


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_composes(entry: str) -> None:
    assert composed(entry=entry)


def test_the_report_of_a_sweep_composes_on_its_own() -> None:
    """Not in conf/, where sweep=NAME is a preset: there it would take sweep=DIR for one."""
    cfg = composed("sweep=runs/sweep/one", conf=CONF / "report", entry="report", hydra=True)
    assert cfg.sweep == "runs/sweep/one" and cfg.hydra.run.dir == "." and cfg.hydra.output_subdir is None


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_composes_and_resolves(name: str) -> None:
    OmegaConf.to_container(option(name), resolve=True, throw_on_missing=True)


def test_hydra_writes_into_the_run_folder_only() -> None:
    cfg = composed("run_dir=here", hydra=True)
    assert cfg.hydra.run.dir == "here" and cfg.hydra.output_subdir is None


def nodes(cfg: Any, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node of a configuration that builds something, with its path."""
    if isinstance(cfg, DictConfig):
        if "_target_" in cfg:
            yield name, cfg
        for key in cfg:
            if not OmegaConf.is_missing(cfg, key):
                yield from nodes(cfg[key], f"{name}.{key}" if name else str(key))


AT_RUNTIME = {"num_classes", "resolution", "num_frames"}  # what the data says, not a configuration


@pytest.mark.parametrize("name", OPTIONS)
def test_keys_are_constructor_keywords(name: str) -> None:
    for path, node in nodes(option(name)):
        keys = {str(key) for key in node} - {"_target_", "_convert_"}
        if path == "optim":
            keys -= set(SCHEDULE_OPTIONS)
        keywords = set(inspect.signature(get_method(node._target_)).parameters) - {"self"}
        if "TensorBoardLogger" in node._target_:  # hands on what it does not know
            keywords |= set(inspect.signature(SummaryWriter).parameters)
        assert keys <= keywords, path
        if node._target_.startswith("vidcls."):  # ours: no option without a line in conf/
            assert keywords - keys <= (AT_RUNTIME if path == "model" else set()), path


def test_nested_keys_are_keywords_too() -> None:
    data = composed("data=demo").data
    assert set(data.decode) == {field.name for field in fields(DecodeLimits)}
    assert set(data.demo) == set(inspect.signature(draw_demo).parameters) - {"folder"}
    assert set(data.zip) == {field.name for field in fields(ZipOptions)}
    model = composed("model=cnn_lstm").model
    assert set(model.encoder) == set(inspect.signature(ConvEncoder).parameters) - {"resolution", "in_channels"}
    assert set(model.lstm) == set(inspect.signature(LSTMHead).parameters) - {"num_features"}
    encoder = option("model/encoder/backbone").model.encoder
    assert set(encoder) == set(inspect.signature(Backbone).parameters) - {"resolution", "in_channels", "sizes"}
    for name, head in {"lstm": RecurrentHead, "pool": PoolHead, "transformer": TransformerHead}.items():
        keywords = set(inspect.signature(head).parameters) - {"num_features", "num_frames", "cell"}
        assert set(option(f"model/head/{name}").model.head) - {"name"} == keywords
    cfg = composed()
    assert {"label_smoothing", "class_weights"} == set(cfg.loss) < set(inspect.signature(VideoClassifier).parameters)


# The networks of whole clips take more frames than these, see test_architectures.
MODELS = ["cnn_lstm", "cnn_mean", "encoder_head"]


@pytest.mark.parametrize("name", MODELS)
def test_each_model_builds_and_classifies(name: str) -> None:
    frames = {"num_frames": 3} if name == "encoder_head" else {}
    model = instantiate(composed(f"model={name}").model, num_classes=5, resolution=16, **frames)
    assert isinstance(model, Classifier)
    assert model(torch.rand(2, 3, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith("augment/")])
def test_each_augmentation_builds(name: str) -> None:
    assert isinstance(instantiate(option(name).augment), Augment)


def test_augmentation_is_off_by_default() -> None:
    clips = torch.randint(0, 256, (2, 2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(instantiate(composed().augment)(clips), clips)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith(("trainer/", "callbacks/"))])
def test_each_trainer_and_set_of_callbacks_builds(name: str, tmp_path: Path) -> None:
    group, _, value = name.partition("/")
    overrides = [f"{group}={value}", f"run_dir={tmp_path}"]
    if not torch.cuda.is_available() or (value == "mps" and not torch.backends.mps.is_available()):
        overrides += ["trainer.accelerator=cpu", "trainer.devices=1"]
    trainer = build_trainer(composed(*overrides))
    assert trainer.max_epochs == 10


# ---- defaults and presets

# The notebook's settings: 20 frames of 64x64, 32-64-128, LSTM 64, dropout 0.5, Keras' Adam, batch 4, 10 epochs.
NOTEBOOK: dict[str, Any] = {
    "data.num_frames": 20,
    "data.resolution": 64,
    "data.batch_size": 4,
    "data.sampling": "uniform",
    "data.temporal_jitter": False,
    "data.sampler": "shuffle",
    "model.encoder.channels": [32, 64, 128],
    "model.lstm.hidden_size": 64,
    "model.dropout": 0.5,
    "optim.lr": 1e-3,
    "optim.eps": 1e-7,
    "optim.weight_decay": 0.0,
    "optim.schedule": "constant",
    "optim.warmup": 0.0,
    "optim.encoder_lr_factor": 1.0,
    "optim.unfreeze_epochs": 0,
    "trainer.max_epochs": 10,
    "trainer.precision": "32-true",
    "trainer.gradient_clip_val": None,
    "trainer.accumulate_grad_batches": 1,
    "loss.label_smoothing": 0.0,
    "loss.class_weights": "none",
    "normalise.mean": [0.0, 0.0, 0.0],
    "normalise.std": [1.0, 1.0, 1.0],
}
HOMES = {"data": "data/base", "model": "model/cnn_lstm", "optim": "optim/adam", "trainer": "trainer/default"}


def selected(cfg: DictConfig) -> dict[str, Any]:
    return {name: OmegaConf.to_container(OmegaConf.create([OmegaConf.select(cfg, name)]))[0] for name in NOTEBOOK}


@pytest.mark.parametrize("overrides", [[], ["experiment=notebook"], ["experiment=notebook", "data=folder"]])
def test_the_notebooks_settings(overrides: list[str]) -> None:
    follows_weights = {} if overrides else {"normalise.mean": None, "normalise.std": None}  # of which it has none
    assert selected(composed(*overrides)) == NOTEBOOK | follows_weights


def other_value(value: Any) -> Any:
    if isinstance(value, list):
        return [2 * entry + 1 for entry in value]
    return {str: "another", bool: not value, type(None): 7.0}.get(type(value)) or 2 * value + 1


def test_the_notebook_stays_pinned_when_defaults_change(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    for name, value in NOTEBOOK.items():
        group, _, option = name.partition(".")
        path = conf / f"{HOMES.get(group, 'train')}.yaml"
        changed = OmegaConf.load(path)
        OmegaConf.update(changed, option if group in HOMES else name, other_value(value))
        OmegaConf.save(changed, path)
    text = (conf / "train.yaml").read_text()
    for old, new in (
        ("cnn_lstm", "cnn_mean"),
        ("augment: none", "augment: standard"),
        ("callbacks: default", "callbacks: early_stopping"),
    ):
        assert old in text
        text = text.replace(old, new)
    (conf / "train.yaml").write_text(text)
    defaults = composed(conf=conf)
    assert defaults.augment.flip > 0 and "early_stopping" in defaults.callbacks and "lstm" not in defaults.model
    with_lstm = selected(composed("model=cnn_lstm", conf=conf))
    assert not [name for name, value in with_lstm.items() if value == NOTEBOOK[name]]
    pinned = composed("experiment=notebook", conf=conf)
    assert selected(pinned) == NOTEBOOK
    assert pinned.model._target_ == "vidcls.models.classifiers.cnn_lstm"
    assert instantiate(pinned.augment).is_identity
    assert "early_stopping" not in pinned.callbacks


def test_the_command_line_wins_over_a_preset() -> None:
    cfg = composed("experiment=notebook", "trainer.max_epochs=2", "model.lstm.hidden_size=8")
    assert (cfg.trainer.max_epochs, cfg.model.lstm.hidden_size) == (2, 8)


def test_one_seed_reaches_the_data() -> None:
    assert composed("seed=7").data.seed == 7


def test_run_folders_are_named_once_and_never_shared() -> None:
    first, second = composed(), composed()
    assert first.run_dir == first.run_dir == first.logger.tensorboard.save_dir
    assert first.run_dir != second.run_dir
    assert first.run_dir.startswith("runs/train/")
    assert composed("resume=runs/train/old").run_dir == "runs/train/old"


# ---- presets at work


ONE_BATCH = [f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]  # of the little there is
BOTH = {"tensorboard", "csv"}


@pytest.mark.parametrize(
    ("debug", "overrides", "loggers"),
    [
        (
            "fdr",
            ["logger=many_loggers", "callbacks=ema", "optim=adamw", "augment=strong"],
            set(),
        ),  # Lightning drops them
        ("overfit", ["trainer.max_epochs=1", "logger=[tensorboard,csv]", "augment=standard"], BOTH),
        ("limit", ["trainer.max_epochs=1", "logger=csv", *ONE_BATCH], {"csv"}),
        ("profiler", ["~logger", "trainer=cpu", "callbacks=early_stopping", "print_config=true"], set()),
    ],
)
def test_presets_run(debug: str, overrides: list[str], loggers: set[str], tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(*tiny[:-2], f"debug={debug}", *overrides, f"run_dir={run}")
    assert result.code == 0, result.stderr
    assert (run / "metrics.json").exists() == (debug != "fdr")
    assert ("max_epochs: 1" in result.stdout) == ("print_config=true" in overrides)
    assert {name for name in BOTH if (run / name).exists()} == loggers


@pytest.mark.parametrize("debug", ["true", "default"])
def test_debug_shows_tracebacks(debug: str, tmp_path: Path) -> None:
    result = train("data=folder", "data.source=nowhere", f"debug={debug}", f"run_dir={tmp_path / 'run'}")
    assert result.code == 2 and "Traceback" in result.stderr and "[missing-source]" in result.stderr


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "pack_cache"])  # which has no use for them
def test_trusted_packages(entry: str) -> None:
    assert trusted_packages(composed(entry=entry)) == ()
    assert trusted_packages(composed("trust=mine", entry=entry)) == ("mine",)
    assert trusted_packages(composed("trust=[mine,yours]", entry=entry)) == ("mine", "yours")


# ---- what Hydra refuses


def test_an_unknown_model_names_the_known_ones() -> None:
    result = train("model=resnet9000")
    assert result.code == 1
    assert "Could not find 'model/resnet9000'" in result.stderr
    assert all(f"\t{name}\n" in result.stderr for name in MODELS)


@pytest.mark.parametrize("override", ["trainer.max_epoch=3", "data.frames=3", "model.lstm.size=3", "sed=1"])
def test_a_misspelt_override_is_named(override: str) -> None:
    result = train(override)
    assert result.code == 1
    option = override.partition("=")[0]
    assert f"Could not override '{option}'" in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_is_left_of_what_hydra_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train("model=resnet9000")
    assert not list(tmp_path.iterdir())
