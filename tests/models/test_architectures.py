"""Every network that conf/model offers: what it gives, that all of it learns, and that it can be kept and exported."""

from __future__ import annotations

import io
import json
import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.conf_files import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import vidcls.sweeps.jobs  # noqa: F401  # registers the resolvers that the files use
from vidcls.data.sampling import ClipSpec, StoreSpec
from vidcls.exporters import ExportedClassifier, export_checked
from vidcls.models.classifiers import Classifier
from vidcls.models.motion import MOTIONS
from vidcls.training.checkpoint import build_model, build_preprocess
from vidcls.training.spec import Normalisation, RunSpec


@dataclass(frozen=True)
class Case:
    """A network, and clips small enough to try it on.

    Attributes:
        overrides: of the configuration.
        num_frames: T.
        resolution: R.
        steps: in which it learns eight clips by heart, at most.
        lr: Adam's.
        still: parameters that a first gradient does not reach, as a regular expression.
        learns: whether it is trained here, or another of its family is.
        format: what it is exported to here; None where another case has the same operations.
    """

    overrides: str
    num_frames: int = 4
    resolution: int = 32
    steps: int = 40
    lr: float = 1e-3
    still: str = "$"
    learns: bool = True
    format: str | None = None


RESNET = "model=encoder_head model.encoder.name=torchvision/resnet18"
CNN = "model=encoder_head model/encoder=cnn model.encoder.channels=[8,16]"
# Attention starts as the mean: as long as the scores' last layer is zero, no gradient passes it.
ATTENTION = r"head\.pooling\.score\.0\."
CASES = [
    Case("model=cnn_lstm"),  # exported in test_exporters, as all LSTMs
    Case("model=cnn_mean"),
    Case("model=encoder_head", learns=False),
    Case("model=encoder_head model.encoder.temporal_shift=true model/head=pool"),  # exported in test_temporal_shift
    Case(f"{RESNET} model/head=gru model.motion=feature_difference"),
    Case(
        f"{RESNET} model/head=pool model.motion=multiscale_difference model.sizes=2",
        num_frames=8,
        resolution=64,
        learns=False,
        format="onnx",
    ),
    Case(f"{RESNET} model/head=pool model.head.pooling=statistics model.encoder.temporal_shift=true", learns=False),
    Case(
        f"{RESNET} model/head=pool model.head.pooling=attention model.motion=early_fusion",
        still=ATTENTION,
        learns=False,
    ),
    Case(f"{CNN} model/head=bilstm model.motion=difference", still=ATTENTION),
    Case(f"{CNN} model/head=transformer model.motion=late_fusion", format="onnx"),
    Case(
        f"{CNN} model/head=lstm model.head.num_layers=2 model.head.pooling=max model.motion=multiscale_difference",
        num_frames=8,
    ),
    Case("model=r3d_18", resolution=16, learns=False),
    Case("model=mc3_18", resolution=16, format="onnx"),
    Case("model=r2plus1d_18", resolution=16, learns=False),
    Case("model=s3d", num_frames=8),
    Case("model=i3d", num_frames=8, learns=False),
    Case("model=r3d_18 model.motion_crop=32", resolution=48, learns=False, format="onnx"),
    # A single patch is left in the last block, which then has neither neighbours nor relative positions.
    Case("model=mvit_v2_s", lr=1e-4, still=r"encoder\.net\.blocks\.15\.attn\.", learns=False),
    Case("model=swin3d_t", lr=1e-4, learns=False, format="torch_export"),
]


def name_of(case: Case) -> str:
    return case.overrides.replace("model", "").strip("=. ")


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=name_of)


@cache
def spec_of(case: Case, *more: str) -> RunSpec:
    """What a checkpoint would say of it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = compose("train", [*case.overrides.split(), *more]).model
    return RunSpec(
        classes=("a", "b", "c"),
        model=OmegaConf.to_container(model, resolve=True, throw_on_missing=True),
        clip=ClipSpec(case.num_frames, case.resolution),
        store=StoreSpec(case.num_frames, case.resolution, "uniform"),
        normalisation=Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
        batch_size=4,
    )


def build(case: Case, *more: str) -> Classifier:
    torch.manual_seed(0)
    return build_model(spec_of(case, *more))


def eight_clips(case: Case) -> tuple[Tensor, Tensor]:
    """Noise in colours that change from frame to frame, and labels that have nothing to do with it."""
    random = torch.Generator().manual_seed(1)
    colours = torch.randn(8, case.num_frames, 3, 1, 1, generator=random)
    noise = torch.randn(8, case.num_frames, 3, case.resolution, case.resolution, generator=random)
    return colours + 0.5 * noise, torch.tensor([0, 1] * 4)


def options(folder: str) -> set[str]:
    return {path.stem for path in (CONF / folder).glob("*.yaml")}


def test_each_option_has_a_case() -> None:
    models = [spec_of(case).model for case in CASES]
    tested = {re.search(r"model=(\w+)", case.overrides).group(1) for case in CASES}  # type: ignore[union-attr]
    assert tested == options("model") - {"video", "custom"}  # the bases of those that name a network
    chosen: list[dict[str, Any]] = [model for model in models if model["_target_"].endswith("encoder_head")]
    assert {model["motion"] for model in chosen} == set(MOTIONS)
    names = {(model["head"]["name"], model["head"].get("bidirectional", False)) for model in chosen}
    heads = {"lstm": ("lstm", False), "bilstm": ("lstm", True), "gru": ("gru", False)}
    heads |= {name: (name, False) for name in ("pool", "transformer")}
    assert set(heads) == options("model/head") and set(heads.values()) == names
    assert {model["encoder"]["name"].partition("/")[0] for model in chosen} == {"cnn", "timm", "torchvision"}
    assert options("model/encoder") == {"cnn", "backbone"}
    assert {model["head"]["pooling"] for model in chosen} == {"last", "mean", "max", "attention", "statistics"}


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def built(request: pytest.FixtureRequest) -> tuple[Case, Classifier]:
    """Of every case its network, to be copied: drawing the weights takes longest."""
    return request.param, build(request.param)


def test_shape_and_gradients(built: tuple[Case, Classifier]) -> None:
    """Every parameter that trains learns from the first batch on."""
    case, model = deepcopy(built)
    model.train()
    clips, labels = eight_clips(case)
    logits = model(clips)
    assert logits.shape == (8, 3)
    F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, gradient in gradients.items() if gradient is None or not bool(gradient.isfinite().all())]
    still = {name for name, gradient in gradients.items() if gradient is not None and not bool(gradient.any())}
    assert still == {name for name in still if re.match(case.still, name)}
    assert bool(still) == (case.still != "$")
    trained = {id(parameter) for stage in model.stages() for parameter in stage if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@each([case for case in CASES if case.learns])
def test_overfits_eight_clips_to_100_percent(case: Case) -> None:
    """In eval mode, as it will predict; but with batch statistics of these clips, which take longer to get there.

    Those of s3d take longest, as they move by a thousandth in each step.
    """
    model = build(case, "model.dropout=0.0")
    clips, labels = eight_clips(case)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=case.lr)
    rights: list[float] = []
    for step in range(1, case.steps + 1):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(clips), labels).backward()
        optimizer.step()
        if step % 5 == 0:
            update_bn([clips], model)
            with torch.no_grad():
                rights.append(float((model.eval()(clips).argmax(dim=1) == labels).float().mean()))
            if rights[-1] == 1.0:
                break
    assert rights[-1] == 1.0, rights


LEARNING = [case for case in CASES if case.learns or "mvit" in case.overrides]


@pytest.mark.parametrize("built", LEARNING, indirect=True, ids=name_of, scope="module")
def test_a_checkpoint_brings_it_back(built: tuple[Case, Classifier]) -> None:
    """One network of each family, and the one that is built for the size of its clips."""
    case, model = deepcopy(built)
    clips, _ = eight_clips(case)
    with torch.no_grad():
        model.train()(clips)  # batch statistics are no longer what they were at first
    file = io.BytesIO()
    torch.save({"spec": spec_of(case).to_dict(), "state_dict": model.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    again = build_model(RunSpec.from_dict(checkpoint["spec"]))
    with torch.no_grad():
        assert not torch.equal(again.eval()(clips), model.eval()(clips))
        again.load_state_dict(checkpoint["state_dict"])
        assert torch.equal(again(clips), model(clips))


@each([case for case in CASES if case.format])
def test_it_exports(case: Case, tmp_path: Path) -> None:
    assert case.format is not None
    torch.manual_seed(0)
    model = build_model(spec_of(case))
    for stage in [part for part in model.modules() if isinstance(part, nn.Sequential)]:
        if len({type(block) for block in stage}) == 1:
            del stage[2:]  # of equal blocks two show what all do
    network = ExportedClassifier(model, build_preprocess(spec_of(case)))
    size = (3, case.num_frames, case.resolution, case.resolution, 3)
    clips = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).numpy()
    path = tmp_path / "exported"
    assert export_checked(network, case.format, path, {"classes": json.dumps(["a", "b", "c"])}, clips) <= 1e-5
    assert path.stat().st_size > 4 * sum(parameter.numel() for parameter in network.parameters())
