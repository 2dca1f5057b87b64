"""A value in place of a section, a list or a group: one clear line at every entry point, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import ROOT, call
from helpers.runs import refused
from omegaconf import DictConfig, ListConfig, OmegaConf

from vidcls.cli import compose_config

NO_SOURCE = ["data=folder", "data.source=nowhere"]
GIVEN = {
    "train": NO_SOURCE,
    "cross_validate": NO_SOURCE,
    "evaluate": ["run=nowhere"],
    "predict": ["run=nowhere", "input=nowhere", "output=out"],
    "select_videos": ["run=nowhere", "input=nowhere"],
    "export": ["run=nowhere"],
    "inspect_data": NO_SOURCE,
    "pack_cache": ["cache_dir=nowhere"],
    "report": ["sweep=nowhere"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("entry", GIVEN)
def test_a_value_in_place_of_a_section_or_list(entry: str) -> None:
    cfg: DictConfig = OmegaConf.create({"trust": []}) if entry == "report" else compose_config(entry)
    groups = {path.name for path in (ROOT / "conf").iterdir()}
    for name in {str(key) for key in cfg if not OmegaConf.is_missing(cfg, key)} - groups - {"decisions"}:  # a path
        values = {DictConfig: ("1", "text", *["null"] * (name != "predict")), ListConfig: ("1", "true")}.get(
            type(cfg[name]), ()
        )
        for value in values:
            refused(call(f"{entry}.py", *GIVEN[entry], f"{name}={value}"), f"[{name}]")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("data.decode=1", "data.decode.workers=..."),
        ("data.store=8", "data.store.num_frames=..."),
        ("model.encoder=cnn", "Choose model/encoder=backbone or cnn."),
        ("model.lstm=null", "model.lstm.hidden_size=..."),
        ("callbacks.best=null", ""),
        ("callbacks.lr=1", ""),
        ("logger.tensorboard=null", ""),
    ],
)
def test_a_value_in_place_of_a_section_within_another(text: str, remedy: str) -> None:
    refused(call("train.py", *NO_SOURCE, text), f"[{text.partition('=')[0]}]", remedy)


@pytest.mark.parametrize(
    ("entry", "text"), [("train", "callbacks.best.enable_version_counter=no"), ("predict", "report.blur=off")]
)
def test_a_text_in_place_of_true_or_false(entry: str, text: str) -> None:
    """It would count as true."""
    refused(call(f"{entry}.py", *GIVEN[entry], text), f"[{text.partition('=')[0]}]", "to be true or false")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        *[("train", "run_dir=null"), ("train", "data.source=null"), ("cross_validate", "output=null")],
        *[
            ("predict", "run=null"),
            ("predict", "output=null"),
            ("select_videos", "output=null"),
        ],
    ],
)
def test_no_path_where_there_must_be_one(entry: str, text: str, tmp_path: Path) -> None:
    """It would be a folder named None, and Hydra has no message for its own."""
    option = text.partition("=")[0]
    given = [one for one in GIVEN[entry] if not one.startswith(f"{option}=")]
    refused(call(f"{entry}.py", *given, text), f"[{option}]")
    assert not list(tmp_path.rglob("None"))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("train", "run_dir=s3://bucket/run"),
        ("train", "cache_dir=s3://bucket/cache"),
        ("predict", "output=s3://bucket/out"),
        ("cross_validate", "output=gs://bucket/out"),
        ("evaluate", "run=s3://bucket/run"),
    ],
)
def test_no_url_where_results_are_written(
    entry: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would lie in a local folder named s3:, and the bucket would stay empty."""
    monkeypatch.chdir(tmp_path)
    option = text.partition("=")[0]
    given = [one for one in GIVEN[entry] if not one.startswith(f"{option}=")]
    refused(call(f"{entry}.py", *given, text), f"[{option}]")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_sweep_ends_before_its_first_job(tmp_path: Path) -> None:
    refused(call("train.py", "-m", *NO_SOURCE, "loss=null", "seed=0,1"), "[loss]")
    assert not list(tmp_path.rglob("job.json"))


@pytest.mark.parametrize("text", ["data.store=null", "callbacks.lr=null", "trust=null", "trust=mine", "~logger"])
def test_what_may_be_left_out(text: str) -> None:
    refused(call("train.py", *NO_SOURCE, text), "[missing-source]")


@pytest.mark.parametrize(
    ("entry", "text"),
    [("train", "model=null"), ("train", "optim=1"), ("evaluate", "data=[1]"), ("predict", "debug=null")],
)
def test_what_names_no_file_of_a_group(entry: str, text: str) -> None:
    result = call(f"{entry}.py", *GIVEN[entry], text)
    assert result.code == 1 and text.partition("=")[0] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("entry", sorted(GIVEN.keys() - {"cross_validate"}))
def test_debug_shows_tracebacks(entry: str) -> None:
    result = call(f"{entry}.py", *GIVEN[entry], "debug=true")
    assert result.code == 2 and "Traceback" in result.stderr and "UserError: expected" in result.stderr
